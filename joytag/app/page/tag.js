// The tab Tag: images in, tags and the reasons for them out.

import { ask, byId, counted, h, isTyped, number, percent, refill, signed, tagName } from "./dom.js";
import { mapped, plain } from "./evidence.js";
import { csv, save, sidecarNames, STYLES, zip } from "./output.js";
import { isImage, Uploads } from "./upload.js";

const NEAR = 0.1; // below the threshold: "just missed"
const MOST_FOUND = 200; // tags that a search lists
const CATEGORIES = ["artist", "copyright", "character", "general", "meta", null];
const LEVELS = { all: { name: "threshold", min: 0.01, max: 0.99 }, own: { name: "all of them by", min: -0.3, max: 0.3 } };

const levels = { all: 0.4, own: 0 }; // what the slider says, for each mode
const moved = new Map(); // thresholds of single tags, by name
let models, uploads, chosen, tag;

const option = (name) => document.querySelector(`#tag input[name=${name}]:checked`).value;
const inUse = () => [...new Set([byId("model").value, byId("other").value].filter(Boolean).map(Number))].map((each) => models[each]);
const isReady = (image) => inUse().every(({ number }) => image.scores[number]);

export function openTagging(served) {
  models = served;
  models.forEach((model) => (model.positions = new Map(model.rows.map(({ name }, position) => [name, position]))));
  levels.all = models[0].threshold;
  const choices = models.map(({ name, number }) => h("option", { value: number }, name));
  byId("model").append(...choices);
  byId("other").append(h("option", { value: "" }, "none"), ...choices.map((each) => each.cloneNode(true)));
  byId("choice").hidden = models.length < 2;
  if (models.length > 1) byId("other").value = "1";
  uploads = new Uploads(changed);
  listen();
  showLevel();
}

function listen() {
  for (const id of ["files", "folder"]) {
    byId(id).addEventListener("change", ({ target }) => {
      add(id === "folder" ? [...target.files].filter(isImage) : target.files);
      target.value = "";
    });
  }
  for (const event of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(event, (happened) => {
      if (byId("tag").hidden) return;
      happened.preventDefault();
      byId("drop").classList.toggle("over", event === "dragover");
      if (event === "drop") add(happened.dataTransfer.files);
    });
  }
  document.addEventListener("paste", ({ clipboardData, target }) => {
    if (!byId("tag").hidden && (clipboardData.files.length || !target.closest?.("input"))) add(clipboardData.files, "no image was pasted: copy the image itself, not its address");
  });
  byId("clear").addEventListener("click", () => {
    uploads.clear();
    chosen = tag = undefined;
    byId("strip").replaceChildren();
    changed();
    byId("files").focus();
  });
  byId("again").addEventListener("click", () => {
    uploads.images.forEach((image) => (image.error = ""));
    changed();
    uploads.run(inUse().map(({ number }) => number));
  });
  for (const id of ["model", "other"]) {
    byId(id).addEventListener("change", () => {
      uploads.run(inUse().map(({ number }) => number));
      changed();
      showImage();
    });
  }
  for (const each of document.querySelectorAll("#tag input[name=mode]")) each.addEventListener("change", showLevel);
  byId("level").addEventListener("input", ({ target }) => {
    levels[option("mode")] = Number(target.value);
    showLevel();
  });
  byId("sort").addEventListener("change", showTags);
  byId("find").addEventListener("input", showTags);
  for (const each of document.querySelectorAll("#tag input[name=style]")) each.addEventListener("change", showText);
  byId("copy").addEventListener("click", copy);
  byId("zip").addEventListener("click", () => saveAll("tags.zip", (done) => {
    const names = sidecarNames(done.map(({ name }) => name));
    return zip(done.map((image, index) => [names[index], `${textOf(image)}\n`]));
  }));
  byId("csv").addEventListener("click", () => saveAll("tags.csv", (done) => csv(done.map((image) => [image.name, textOf(image)]))));
  document.addEventListener("keydown", press);
}

function press(event) {
  if (byId("tag").hidden || !uploads.images.length) return;
  if (event.key === "Escape") return select(undefined);
  if (isTyped(event)) return;
  const rows = [...document.querySelectorAll("#tags .tag")];
  const at = rows.indexOf(document.activeElement);
  const actions = {
    ArrowLeft: () => step(-1),
    ArrowRight: () => step(1),
    ArrowDown: () => rows[Math.min(at + 1, rows.length - 1)]?.focus(),
    ArrowUp: () => rows[Math.max(at - 1, 0)]?.focus(),
    c: copy,
    "/": () => byId("find").focus(),
  };
  if (!actions[event.key]) return;
  event.preventDefault();
  actions[event.key]();
}

function step(by) {
  const next = uploads.images[uploads.images.indexOf(chosen) + by];
  if (next) choose(next);
}

// Images

function add(files, without = "nothing here is an image") {
  if (!files.length) return notice(without);
  notice("");
  for (const image of uploads.add(files)) {
    const picture = h("img", { src: image.url, alt: "", loading: "lazy", decoding: "async", error: () => picture.remove() });
    image.button = h("button", { title: image.name, "aria-label": image.name, "aria-pressed": "false", class: "waiting", click: () => choose(image) }, picture);
    byId("strip").append(h("li", {}, image.button));
    chosen ??= image;
  }
  uploads.run(inUse().map(({ number }) => number));
  changed();
  choose(chosen);
}

function notice(text) {
  byId("batch").hidden = !text && !uploads.images.length;
  byId("done").hidden ||= !uploads.images.length;
  byId("status").textContent = text;
}

function changed(image) {
  const { images, delay } = uploads;
  const failed = images.filter(({ error }) => error);
  const done = images.filter((each) => !each.error && isReady(each)).length;
  byId("batch").hidden = byId("strip").hidden = !images.length;
  byId("result").hidden = !images.length;
  byId("done").max = images.length;
  byId("done").value = done + failed.length;
  byId("done").hidden = done + failed.length === images.length;
  byId("status").textContent = [`${done} of ${counted(images.length, "image")} tagged`, failed.length && `${failed.length} failed`, delay].filter(Boolean).join("; ");
  byId("again").hidden = byId("failed").hidden = !failed.length;
  byId("failed").firstChild.textContent = `${failed.length} failed`;
  byId("failed").lastChild.replaceChildren(...failed.map(({ name, error }) => h("li", {}, h("b", {}, name), ` ${error}`)));
  for (const each of image ? [image] : images) each.button.className = each.error ? "failed" : isReady(each) ? "" : "waiting";
  if (image && image === chosen) showTags();
}

function choose(image) {
  chosen?.button.setAttribute("aria-pressed", "false");
  chosen = image;
  chosen.button.setAttribute("aria-pressed", "true");
  chosen.button.scrollIntoView({ block: "nearest", inline: "nearest" });
  showImage();
}

// Thresholds and tags

/** A tag's threshold: where it was moved to, else that of the mode. */
function thresholdOf(row) {
  const usual = option("mode") === "all" ? levels.all : Math.min(0.99, Math.max(0.01, row.threshold + levels.own));
  return moved.get(row.name) ?? usual;
}

/** What a model says of a tag: its row, score, threshold and the score's margin; nothing if it lacks the tag. */
function judge(image, model, name) {
  const position = model.positions.get(name);
  if (position === undefined) return undefined;
  const [row, score] = [model.rows[position], image.scores[model.number][position]];
  const threshold = thresholdOf(row);
  return { row, score, threshold, margin: score - threshold };
}

/** All tags of some models with what each says, sorted; `by` are the models' judgements. */
function judged(image, used) {
  const names = [...new Set(used.flatMap(({ rows }) => rows.map(({ name }) => name)))];
  const entries = names.map((name) => {
    const by = used.map((model) => judge(image, model, name));
    const known = by.filter(Boolean);
    return {
      name,
      by,
      category: known.find(({ row }) => row.category)?.row.category ?? null,
      score: Math.max(...known.map(({ score }) => score)),
      margin: Math.max(...known.map(({ margin }) => margin)),
      isDisputed: by.some((each) => each?.margin > 0) && !by.every((each) => each?.margin > 0),
    };
  });
  const order = byId("sort").value;
  if (order !== "vocabulary") entries.sort((a, b) => b.score - a.score);
  if (order === "category") entries.sort((a, b) => CATEGORIES.indexOf(a.category) - CATEGORIES.indexOf(b.category));
  return entries;
}

function showLevel() {
  const { name, ...bounds } = LEVELS[option("mode")];
  const value = levels[option("mode")];
  byId("level-name").textContent = name;
  Object.assign(byId("level"), bounds, { value });
  byId("level-value").textContent = option("mode") === "own" ? signed(value) : number(value);
  showTags();
}

function showTags() {
  if (!chosen) return;
  showText();
  const used = inUse();
  byId("meaning").hidden = !used.some(({ has_reliability, calibration }) => has_reliability || calibration);
  if (chosen.error) return refill(byId("tags"), h("p", { class: "error" }, `${chosen.name}: ${chosen.error}`));
  if (!isReady(chosen)) return refill(byId("tags"), h("p", { class: "soft" }, "Waiting for its scores …"));
  const entries = judged(chosen, used);
  const wanted = byId("find").value.trim().toLowerCase().replaceAll(" ", "_");
  const found = entries.filter(({ name }) => name.includes(wanted));
  const over = found.filter(({ margin }) => margin > 0);
  const under = found.filter(({ margin }) => (wanted ? margin <= 0 : margin <= 0 && margin > -NEAR));
  const disputed = over.filter(({ isDisputed }) => isDisputed).length;
  refill(
    byId("tags"),
    used.length > 1 && h("p", { class: "how" }, `${counted(disputed, "difference")} between `, used.map(({ name }, index) => [index ? " and " : "", h("span", { class: `by m${index}` }, name)]).flat(), ". Text and files take the tags of the first."),
    lists(`${counted(over.length, "tag")} above the threshold`, over, used),
    lists(wanted ? "Below it" : `Missed by less than ${NEAR}`, under.slice(0, MOST_FOUND), used),
    !found.length && h("p", { class: "none" }, "No such tag."),
  );
}

/** A list under its heading; one for each category if they are sorted so. */
function lists(title, entries, used) {
  if (!entries.length) return [];
  const heading = h("h2", {}, title);
  const list = (some) => h("ul", { class: "tags" }, some.map((entry) => row(entry, used)));
  const kinds = [...new Set(entries.map(({ category }) => category))];
  if (byId("sort").value !== "category" || kinds.every((kind) => kind === null)) return [heading, list(entries)];
  return [heading, kinds.flatMap((kind) => [h("h3", {}, kind ?? "no category"), list(entries.filter(({ category }) => category === kind))])].flat();
}

function row(entry, used) {
  const { name, by, isDisputed } = entry;
  const holders = used.filter((_, index) => by[index]?.margin > 0).map((model) => model.name);
  const button = h(
    "button",
    { class: `tag${isDisputed ? " disputed" : ""}`, "data-key": name, "aria-pressed": String(name === tag), click: () => select(name === tag ? undefined : name) },
    h("span", { class: "name" }, tagName(name), isDisputed && h("small", { class: "only" }, `only ${holders.join(", ")}`)),
    by.map((judgement, index) => line(judgement, used[index], used.length > 1 ? `m${index}` : "")),
  );
  return h("li", {}, button, name === tag && details(entry, button, used));
}

/** A score beside its threshold, in a bar and in words, and how reliable it is. */
function line(judgement, model, kind) {
  if (!judgement) return h("span", { class: `line ${kind}` }, h("small", {}, `${model.name} does not know it`));
  const { row, score, threshold, margin } = judgement;
  const right = calibrated(model, score);
  const reliable = [row.f1 != null && `F1 ${number(row.f1)}`, right !== undefined && `right ${percent(right)}`].filter(Boolean);
  return h(
    "span",
    { class: `line ${kind}${margin > 0 ? "" : " missed"}` },
    h("span", { class: "bar", vars: { "--score": score, "--threshold": threshold } }),
    h("span", { class: "score" }, number(score)),
    h("small", { class: "margin" }, margin > 0 ? `over by ${number(margin)}` : `missed by ${number(-margin)}`),
    h("small", {}, reliable.join(", ")),
  );
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
function details({ name, by }, button, used) {
  const known = by.map((judgement, index) => [judgement, used[index]]).filter(([judgement]) => judgement);
  const value = h("output", {}, number(known[0][0].threshold));
  const slider = h("input", { type: "range", min: 0.01, max: 0.99, step: 0.01, value: known[0][0].threshold, "aria-label": `Threshold of ${name}`, "data-key": `threshold ${name}` });
  slider.addEventListener("input", () => {
    moved.set(name, Number(slider.value));
    value.textContent = number(moved.get(name));
    button.querySelectorAll(".line").forEach((each, index) => each.replaceWith(line(judge(chosen, used[index], name), used[index], used.length > 1 ? `m${index}` : "")));
    showText();
  });
  slider.addEventListener("change", showTags); // not sooner, lest the slider goes away under the pointer
  const back = () => {
    moved.delete(name);
    showTags();
  };
  return h(
    "div",
    { class: "details" },
    h("label", {}, "its threshold ", slider, " ", value),
    moved.has(name) && h("button", { class: "button", "data-key": `back ${name}`, click: back }, "back"),
    known.filter(([{ row }]) => row.f1 != null).map(([{ row }, model]) =>
      h("p", { class: "how" }, `${model.name}: F1 ${number(row.f1)}, precision ${row.precision == null ? "–" : number(row.precision)}, recall ${row.recall == null ? "–" : number(row.recall)} on ${counted(row.images, "image")} with it`)),
  );
}

// The image, and where a tag is seen

function select(name) {
  tag = name;
  showImage();
}

function showImage() {
  if (!chosen) return;
  showTags();
  const size = chosen.width ? `${chosen.width} × ${chosen.height}` : "";
  const figures = tag === undefined
    ? [plain(chosen.url, chosen.name, `${chosen.name} ${size}`)]
    : inUse().filter(({ positions }) => positions.has(tag)).map((model) => mapped(chosen.url, chosen.name, tag, model, () => mapOf(chosen, model)));
  byId("figures").replaceChildren(...figures);
}

function mapOf(image, model) {
  const key = `${model.number} ${tag}`;
  if (!image.maps.has(key)) {
    const form = new FormData();
    for (const [field, value] of Object.entries({ file: image.file, tag, model: model.number })) form.append(field, value);
    const map = ask("evidence", { method: "POST", body: form });
    map.catch(() => image.maps.delete(key)); // to be asked again
    image.maps.set(key, map);
  }
  return image.maps.get(key);
}

// Text

const textOf = (image) => STYLES[option("style")](judged(image, inUse().slice(0, 1)).filter(({ margin }) => margin > 0).map(({ name }) => name));

function showText() {
  byId("text").value = chosen && !chosen.error && isReady(chosen) ? textOf(chosen) : "";
  byId("copied").textContent = byId("saved").textContent = "";
}

async function copy() {
  const text = byId("text");
  try {
    await navigator.clipboard.writeText(text.value);
  } catch { // without HTTPS, other machines' browsers have no such thing
    text.select();
    if (!document.execCommand("copy")) return void (byId("copied").textContent = "Select the text and copy it: this browser does not let pages do so.");
  }
  byId("copied").textContent = "Copied.";
}

function saveAll(name, write) {
  const done = uploads.images.filter((image) => !image.error && isReady(image));
  if (done.length) save(name, write(done));
  const missing = uploads.images.length - done.length;
  byId("saved").textContent = `${counted(done.length, "image")} saved${missing ? `; ${missing} not tagged` : ""}.`;
}
