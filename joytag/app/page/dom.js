// Elements, numbers, requests and keys, for all of the page.

export const byId = (id) => document.getElementById(id);
export const number = (value, digits = 2) => value.toFixed(digits).replace("-", "−");
export const signed = (value, digits = 2) => (value < 0 ? "" : "+") + number(value, digits);
export const percent = (value) => `${Math.round(100 * value)} %`;
export const counted = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
export const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

/** Create an element. Functions become listeners, `vars` custom properties of CSS, all others attributes. */
export function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(key, value);
    else if (key === "vars") Object.entries(value).forEach(([each, of]) => element.style.setProperty(each, of));
    else if (typeof value === "boolean") element.toggleAttribute(key, value);
    else if (value !== undefined && value !== null) element.setAttribute(key, value);
  }
  element.append(...children.flat().filter((child) => child !== undefined && child !== null && child !== false));
  return element;
}

/** A tag's name, which may be broken after an underscore. */
export function tagName(name) {
  return h("bdi", {}, name.split(/(?<=_)/).flatMap((part, index) => (index ? [h("wbr"), part] : [part])));
}

/** Replace what an element holds; what has the focus keeps it by its `data-key`. */
export function refill(element, ...children) {
  const key = element.contains(document.activeElement) && document.activeElement.dataset.key;
  element.replaceChildren(...children.flat().filter(Boolean));
  if (key) [...element.querySelectorAll("[data-key]")].find((each) => each.dataset.key === key)?.focus({ preventScroll: true });
}

/** Ask the service; returns the JSON, or throws an error with `status` (0 without an answer), `body` and `after`, seconds. */
export async function ask(path, options) {
  let answer, body;
  try {
    answer = await fetch(`/api/${path}`, options);
    body = answer.ok ? await answer.json() : await answer.json().catch(() => ({}));
  } catch {
    throw Object.assign(new Error("the service does not answer; is it still running?"), { status: 0, body: {} });
  }
  if (answer.ok) return body;
  const { detail = `status ${answer.status}` } = body;
  const reason = typeof detail === "string" ? detail : detail.map(({ loc, msg }) => `${loc.at(-1)}: ${msg}`).join("; ");
  throw Object.assign(new Error(reason), { status: answer.status, body, after: Number(answer.headers.get("Retry-After")) });
}

/** Whether a key is meant for a field, not for the page. */
export function isTyped({ target, ctrlKey, metaKey, altKey }) {
  return ctrlKey || metaKey || altKey || target.closest?.("input:not([type=file]), select, textarea") != null;
}
