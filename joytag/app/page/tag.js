// The tab Tag: images in, tags and the reasons for them out.

import { ask, byId, counted, h, listReasons, number, onKeys, percent, refill, signed, tagName } from "./dom.js";
import { mapped, plain } from "./evidence.js";
import { csv, save, sidecarNames, STYLES, zip } from "./output.js";
import { dropped, isImage, Uploads } from "./upload.js";

const NEAR = 0.1; // below the threshold: "just missed"
const MOST_FOUND = 200; // tags that a search lists
const CATEGORIES = ["artist", "copyright", "character", "general", "meta", null];
const ADDRESS = "no image was pasted: copy the image itself, not its address";

const uploads = new Uploads(changed);
const moved = new Map(); // thresholds of single tags, by name
let models, used, settings, chosen, tag, notice = "";

const isReady = (image) => !image.error && used.every(({ position }) => image.scores[position]);

export function openTagging(served) {
  models = served;
  for (const model of models) model.columns = new Map(model.rows.map(({ name }, column) => [name, column]));
  for (const id of ["model", "other"]) {
    byId(id).append(...models.map(({ name, position }) => h("option", { value: position }, name)));
  }
  byId("choice").hidden = models.length === 1;
  byId("other").value = models.length === 1 ? "" : 1;
  byId("result").elements.all.value = models[0].threshold;
  listen();
  show();
}

function listen() {
  byId("result").addEventListener("input", ({ target }) => target.name && show());
  byId("drop").addEventListener("change", ({ target }) => {
    add(target.webkitdirectory ? [...target.files].filter(isImage) : [...target.files]);
    target.value = "";
  });
  for (const type of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(type, (event) => {
      event.preventDefault();
      if (byId("tag").hidden) return;
      byId("drop").classList.toggle("over", type === "dragover");
      if (type === "drop") dropped(event.dataTransfer).then(add, (error) => add([], `it cannot be read: ${error.message}`));
    });
  }
  document.addEventListener("paste", ({ clipboardData: { files }, target }) => {
    if (!byId("tag").hidden && (files.length || !target.closest("input"))) add([...files], ADDRESS);
  });
  byId("clear").addEventListener("click", () => {
    uploads.clear();
    byId("strip").replaceChildren();
    chosen = tag = undefined;
    show();
    byId("files").focus();
  });
  byId("again").addEventListener("click", () => {
    uploads.images.forEach((image) => (image.error = ""));
    show();
    chosen.button.focus();
  });
  byId("copy").addEventListener("click", copy);
  byId("zip").addEventListener("click", () => saveAll("tags.zip", (rows) => {
    const names = sidecarNames(rows.map(([name]) => name));
    return zip(rows.map(([, text], index) => [names[index], `${text}\n`]));
  }));
  byId("csv").addEventListener("click", () => saveAll("tags.csv", csv));
  onKeys(byId("tag"), () => {
    if (!chosen) return {};
    const rows = [...document.querySelectorAll("#tags .tag")];
    const at = rows.indexOf(document.activeElement);
    const step = (by) => choose(uploads.images[uploads.images.indexOf(chosen) + by] ?? chosen);
    return {
      ArrowLeft: () => step(-1),
      ArrowRight: () => step(1),
      ArrowDown: () => rows[Math.min(at + 1, rows.length - 1)]?.focus(),
      ArrowUp: () => rows[Math.max(at - 1, 0)]?.focus(),
      Escape: () => select(undefined),
      c: copy,
      "/": () => byId("find").focus(),
    };
  });
}

// Images

function add(files, without = "nothing here is an image") {
  notice = files.length ? "" : without;
  for (const image of uploads.add(files)) {
    const picture = h("img", { src: image.url, alt: "", loading: "lazy", decoding: "async", error: () => picture.remove() });
    image.button = h("button", { title: image.name, "aria-label": image.name, click: () => choose(image) }, picture);
    byId("strip").append(h("li", {}, image.button));
    chosen ??= image;
  }
  show();
}

function choose(image) {
  chosen = image;
  show();
  chosen.button.scrollIntoView({ block: "nearest", inline: "nearest" });
}

function select(name) {
  tag = name;
  show();
}

/** Read the settings and show all that follows from them. */
function show() {
  settings = Object.fromEntries(new FormData(byId("result")));
  used = [...new Set([settings.model, settings.other])].filter(Boolean).map((position) => models[position]);
  byId("own-level").textContent = signed(Number(settings.own));
  byId("all-level").textContent = number(Number(settings.all));
  byId("meaning").hidden = !used.some(({ has_reliability, calibration }) => has_reliability || calibration);
  uploads.run(used.map(({ position }) => position));
  changed();
}

/** Show what an image's scores or its error changed, or else a notice about all of them. */
function changed(image) {
  const { images, delay } = uploads;
  const failed = images.filter(({ error }) => error).map(({ name, error }) => [name, error]);
  const done = images.filter(isReady).length;
  const all = counted(images.length, "image");
  const parts = [images.length && `${done} of ${all} tagged`, failed.length && `${failed.length} failed`, delay, notice];
  byId("status").textContent = parts.filter(Boolean).join("; ");
  byId("batch").hidden = !images.length && !notice;
  byId("result").hidden = byId("strip").hidden = byId("clear").hidden = !images.length;
  const value = done + failed.length;
  Object.assign(byId("done"), { max: images.length, value, hidden: value === images.length });
  byId("again").hidden = !failed.length;
  listReasons(byId("failed"), failed, `${failed.length} failed`);
  for (const each of image ? [image] : images) {
    each.button.className = each.error ? "failed" : isReady(each) ? "" : "waiting";
    each.button.setAttribute("aria-pressed", each === chosen);
  }
  if (chosen && (!image || image === chosen)) showChosen();
}

function showChosen() {
  const { url, name, width, height } = chosen;
  const figures = byId("figures");
  const shown = [url, width, tag, ...used.map((model) => model.name)].join(" ");
  if (figures.dataset.shown !== shown) {
    const knowing = used.filter(({ columns }) => columns.has(tag));
    const maps = knowing.map((model) => mapped(url, name, tag, model, () => evidence(chosen, model)));
    figures.replaceChildren(...(maps.length ? maps : [plain(url, name, `${name} ${width ? `${width} × ${height}` : ""}`)]));
    figures.dataset.shown = shown;
  }
  showTags();
  const text = isReady(chosen) ? textOf(chosen) : "";
  if (byId("text").value !== text) byId("copied").textContent = "";
  byId("text").value = text;
  byId("saved").textContent = "";
}

function evidence(image, model) {
  const body = new FormData();
  for (const [field, value] of Object.entries({ file: image.file, tag, model: model.position })) body.append(field, value);
  return ask("evidence", { method: "POST", body });
}

// Tags and their thresholds

/** What a model says of a tag: its row, score, threshold and the score's margin; nothing if it lacks the tag. */
function judge(image, model, name) {
  const column = model.columns.get(name);
  if (column === undefined) return undefined;
  const [row, score] = [model.rows[column], image.scores[model.position][column]];
  const own = Math.min(0.99, Math.max(0.01, row.threshold + Number(settings.own)));
  const threshold = moved.get(name) ?? (settings.mode === "all" ? Number(settings.all) : own);
  return { row, score, threshold, margin: score - threshold };
}

/** All tags of some models with what each says, sorted; `by` are the models' judgements. */
function judged(image, some) {
  const names = [...new Set(some.flatMap(({ rows }) => rows.map(({ name }) => name)))];
  const entries = names.map((name) => {
    const by = some.map((model) => judge(image, model, name));
    const known = by.filter(Boolean);
    const over = some.filter((_, index) => by[index]?.margin > 0);
    return {
      name,
      by,
      category: known.find(({ row }) => row.category)?.row.category ?? null,
      score: Math.max(...known.map(({ score }) => score)),
      margin: Math.max(...known.map(({ margin }) => margin)),
      only: over.length < some.length && over.length ? over.map((model) => model.name) : undefined,
    };
  });
  if (settings.sort !== "vocabulary") entries.sort((a, b) => b.score - a.score);
  if (settings.sort === "category") entries.sort((a, b) => CATEGORIES.indexOf(a.category) - CATEGORIES.indexOf(b.category));
  return entries;
}

function showTags() {
  if (chosen.error) return refill(byId("tags"), h("p", { class: "error" }, `${chosen.name}: ${chosen.error}`));
  if (!isReady(chosen)) return refill(byId("tags"), h("p", { class: "how" }, "Waiting for its scores …"));
  const wanted = settings.find.trim().toLowerCase().replaceAll(" ", "_");
  const found = judged(chosen, used).filter(({ name }) => name.includes(wanted));
  const over = found.filter(({ margin }) => margin > 0);
  const under = found.filter(({ margin }) => margin <= 0 && (wanted || margin > -NEAR)).slice(0, MOST_FOUND);
  const names = used.map(({ name }, index) => [index ? " and " : "", h("span", { class: `by m${index}` }, name)]).flat();
  const disputed = counted(over.filter(({ only }) => only).length, "difference");
  refill(
    byId("tags"),
    used.length > 1 && h("p", { class: "how" }, `${disputed} between `, names, ". Text and files take the tags of the first."),
    lists(`${counted(over.length, "tag")} above the threshold`, over),
    lists(wanted ? "Below it" : `Missed by less than ${NEAR}`, under),
    !found.length && h("p", { class: "how" }, "No such tag."),
  );
}

/** A list under its heading; one for each category if they are sorted so. */
function lists(title, entries) {
  if (!entries.length) return [];
  const list = (some) => h("ul", { class: "tags" }, some.map(tagRow));
  const kinds = Map.groupBy(entries, ({ category }) => category);
  if (settings.sort !== "category" || (kinds.size === 1 && kinds.has(null))) return [h("h2", {}, title), list(entries)];
  return [h("h2", {}, title), ...[...kinds].flatMap(([kind, some]) => [h("h3", {}, kind ?? "no category"), list(some)])];
}

function tagRow(entry) {
  const { name, by, only } = entry;
  const isOpen = name === tag;
  const click = () => select(isOpen ? undefined : name);
  return h("li", {},
    h("button", { class: only ? "tag disputed" : "tag", "data-key": name, "aria-pressed": String(isOpen), click },
      h("span", { class: "name" }, tagName(name), only && h("small", { class: "only" }, `only ${only.join(", ")}`)),
      h("span", { class: "lines" }, by.map(line))),
    isOpen && details(entry));
}

/** A score beside its threshold, in a bar and in words, and how reliable it is. */
function line(judgement, index) {
  const kind = used.length > 1 ? `line m${index}` : "line";
  if (!judgement) return h("span", { class: kind }, h("small", {}, `${used[index].name} does not know it`));
  const { row, score, threshold, margin } = judgement;
  const right = calibrated(used[index], score);
  const reliable = [row.images && `F1 ${number(row.f1)}`, right !== undefined && `right ${percent(right)}`];
  return h("span", { class: margin > 0 ? kind : `${kind} missed` },
    h("span", { class: "bar", vars: { "--score": score, "--threshold": threshold } }),
    h("span", { class: "score" }, number(score)),
    h("small", { class: "margin" }, margin > 0 ? `over by ${number(margin)}` : `missed by ${number(-margin)}`),
    h("small", {}, reliable.filter(Boolean).join(", ")));
}

/** How often a score was right, interpolated between the bins of the model's calibration. */
function calibrated({ calibration }, score) {
  if (!calibration?.scores.length) return undefined;
  const { scores, shares } = calibration;
  const above = scores.findIndex((each) => each >= score);
  if (above <= 0) return shares.at(above); // below the first bin, or above the last
  const share = (score - scores[above - 1]) / (scores[above] - scores[above - 1]);
  return shares[above - 1] + share * (shares[above] - shares[above - 1]);
}

/** The threshold of one tag, to be moved, and what its evaluation said. */
function details({ name, by }) {
  const move = (value) => {
    value ? moved.set(name, Number(value)) : moved.delete(name);
    show();
  };
  const attributes = { type: "number", min: 0.01, max: 0.99, step: 0.01, "data-key": `threshold ${name}` };
  const value = by.find(Boolean).threshold.toFixed(2);
  const evaluation = ({ f1, precision, recall, images }) =>
    `F1 ${number(f1)}, precision ${number(precision)}, recall ${number(recall)} on ${counted(images, "image")} with it`;
  return h("div", { class: "details" },
    h("label", {}, "its threshold ", h("input", { ...attributes, value, change: ({ target }) => move(target.value) })),
    moved.has(name) && h("button", { class: "button", click: () => move("") }, "back"),
    by.map((each, index) =>
      each?.row.images > 0 && h("p", { class: "how" }, `${used[index].name}: ${evaluation(each.row)}`)));
}

// Text

const textOf = (image) => {
  const over = judged(image, used.slice(0, 1)).filter(({ margin }) => margin > 0);
  return STYLES[settings.style](over.map(({ name }) => name));
};

function copy() {
  const focused = document.activeElement;
  byId("text").focus({ preventScroll: true });
  byId("text").select();
  const isCopied = document.execCommand("copy"); // unlike navigator.clipboard, it needs no HTTPS on other machines
  byId("copied").textContent = isCopied ? "Copied." : "Select the text and copy it: this browser does not let pages do so.";
  focused.focus({ preventScroll: true });
}

function saveAll(name, write) {
  const done = uploads.images.filter(isReady);
  if (done.length) save(name, write(done.map((image) => [image.name, textOf(image)])));
  const missing = uploads.images.length - done.length;
  byId("saved").textContent = `${counted(done.length, "image")} saved${missing ? `; ${missing} not tagged` : ""}.`;
}
