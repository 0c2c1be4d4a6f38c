// Elements, numbers, requests and keys, for all of the page.

export const byId = (id) => document.getElementById(id);
export const number = (value, digits = 2) => value?.toFixed(digits).replace("-", "−") ?? "–";
export const signed = (value, digits = 2) => (value < 0 ? "" : "+") + number(value, digits);
export const percent = (value) => `${Math.round(100 * value)} %`;
export const counted = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
export const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

/** Create an element. Functions become listeners, `vars` custom properties of CSS, all others attributes. */
export function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  if (name === "button") element.type = "button";
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(key, value);
    else if (key === "vars") Object.entries(value).forEach(([each, of]) => element.style.setProperty(each, of));
    else if (typeof value === "boolean") element.toggleAttribute(key, value);
    else if (value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children.flat().filter((child) => child || child === 0));
  return element;
}

/** A tag's name, which may be broken after an underscore. */
export const tagName = (name) => h("bdi", {}, name.split(/(?<=_)/).flatMap((part) => [part, h("wbr")]).slice(0, -1));

/** Replace what an element holds; what has the focus keeps it by its `data-key`, else the element gets it. */
export function refill(element, ...children) {
  const focused = element.contains(document.activeElement) && document.activeElement;
  element.replaceChildren(...children.flat().filter(Boolean));
  if (!focused) return;
  const same = [...element.querySelectorAll("[data-key]")].find((each) => each.dataset.key === focused.dataset.key);
  (same ?? element).focus({ preventScroll: true });
}

/** List in a <details> what cannot be used, [name, reason] pairs. */
export function listReasons(details, reasons, title) {
  details.hidden = !reasons.length;
  details.firstChild.textContent = title;
  details.lastChild.replaceChildren(...reasons.map(([name, reason]) => h("li", {}, h("b", {}, name), ` ${reason}`)));
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

/** Do what `actions()` has for a key while a tab is shown, unless the key is meant for what has the focus. */
export function onKeys(tab, actions) {
  document.addEventListener("keydown", (event) => {
    const { target, key, ctrlKey, metaKey, altKey } = event;
    const isTyped = target.closest("input:not([type=radio], [type=range], [type=file]), select, textarea");
    const isPressed = key === "Enter" && target.closest("a, button:not(.cells *), input, summary");
    const isMoved = key.startsWith("Arrow") && target.closest("input:not([type=file])");
    if (tab.hidden || ctrlKey || metaKey || altKey || isTyped || isPressed || isMoved) return;
    const action = actions()[key];
    if (!action) return;
    event.preventDefault();
    action();
  });
}
