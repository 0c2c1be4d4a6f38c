// The tab Label: questions about the images of a folder, by tag, by image, or where an evaluation doubts a label.

import { ask, byId, counted, h, listReasons, number, onKeys, pause, percent, refill, tagName } from "./dom.js";
import { mapped, plain } from "./evidence.js";

const ANSWERS = { y: "yes", n: "no", u: "unsure" }; // by key
const PAGE = 10; // images of a grid: as many as there are number keys

const unsent = new Map(); // decisions that the service has not answered, by image and tag
let model, state, view, queue = Promise.resolve();

export async function openLabelling(served) {
  model = served;
  byId("views").addEventListener("click", ({ target }) => target.value && show(VIEWS[target.value]));
  byId("undo").addEventListener("click", undo);
  byId("resend").addEventListener("click", () => decide([]).then(() => byId("questions").focus()));
  byId("learn").addEventListener("click", () => attempt(async () => {
    await ask("label/learn", { method: isLearning() ? "DELETE" : "POST" });
    await refresh();
  }));
  byId("word").addEventListener("input", async ({ target }) => {
    const words = await ask(`label/words?text=${encodeURIComponent(target.value)}`).catch(() => []);
    const option = ({ tag, is_known, yes, no }) => h("option", { value: tag }, `${yes} yes, ${no} no${is_known ? "" : "; new"}`);
    byId("words").replaceChildren(...words.map(option));
  });
  byId("word").form.addEventListener("submit", () => view.take(byId("word").value));
  onKeys(byId("label"), () => ({ z: undo, ...view.keys() }));
  window.addEventListener("beforeunload", (event) => unsent.size && event.preventDefault());
  await refresh();
  await show(grid);
  watch();
}

function show(next) {
  return attempt(async () => {
    view = next;
    for (const each of byId("views").children) each.setAttribute("aria-pressed", VIEWS[each.value] === view);
    byId("word-name").textContent = view.word;
    byId("word").value = view.tag ?? "";
    byId("word").form.hidden = !view.word;
    tell("");
    await view.load();
    byId("questions").focus({ preventScroll: true });
  });
}

const tell = (text) => (byId("told").textContent = text);
const fill = (...children) => refill(byId("questions"), ...children);
const fillNone = (text) => fill(h("p", { class: "how" }, text));
const picture = (sha256, side) => `/api/label/images/${sha256}/picture?side=${side}`;
const mainButton = (text, click) =>
  h("p", {}, h("button", { class: "button strong", "data-key": text, click }, text, " ", h("kbd", {}, "Enter")));

/** Do one thing after the other. */
const attempt = (action) => (queue = queue.then(action).catch((error) => tell(error.message)));

// Decisions: they count as kept when the service has answered

/** Keep decisions, with those that could not be sent before, and show what comes next. */
function decide(rows) {
  rows.forEach((row) => unsent.set(`${row.sha256} ${row.tag}`, row));
  return attempt(async () => (await send()) && view.load());
}

/** Send what is unsent; whether nothing is left. */
async function send() {
  const now = [...unsent];
  const forget = () => now.forEach(([key, row]) => unsent.get(key) === row && unsent.delete(key));
  if (now.length) tell("Keeping …");
  try {
    const body = JSON.stringify(now.map(([, row]) => row));
    const options = { method: "POST", headers: { "Content-Type": "application/json" }, body };
    if (now.length) tell(`${counted((await ask("label/decisions", options)).length, "decision")} kept.`);
    forget();
  } catch (error) {
    if ([404, 422].includes(error.status)) forget(); // they would be refused again
    tell(`${counted(now.length, "decision")} not kept: ${error.message}`);
  }
  byId("resend").hidden = !unsent.size;
  return !unsent.size;
}

function undo() {
  return attempt(async () => {
    if (!(await send())) return;
    const [first, ...others] = await ask("label/undo", { method: "POST" });
    await view.load(first);
    const count = counted(1 + others.length, "decision");
    tell(first ? `Undone: ${count}, ${first.tag} ${first.decision} first.` : "There is nothing to undo.");
  });
}

// The folder, and learning

const isLearning = () => ["preparing", "running", "loading"].includes(state.learning.state);

async function refresh() {
  state = await ask("label");
  const { folder, files, scored, broken, decided, is_scoring, failure, learning } = state;
  const images = `${counted(scored, "image")} scored${is_scoring ? " so far" : ""}`;
  byId("collection").textContent = [
    `${folder}: ${counted(files, "file")}, ${images}, ${decided.toLocaleString("en")} with decisions.`,
    `Ordered by ${state.model}.`,
    failure && `Scoring has ended: ${failure}`,
  ].join(" ");
  const reasons = Object.entries(broken);
  listReasons(byId("broken"), reasons, `${counted(reasons.length, "file")} cannot be used`);
  const { samples, total, message } = learning;
  byId("learn").textContent = isLearning() ? "Stop learning" : "Learn from the decisions";
  Object.assign(byId("learnt"), { hidden: !isLearning(), max: total || 1, value: samples });
  const progress = isLearning() && total && `${samples.toLocaleString("en")} of ${counted(total, "sample")}`;
  const said = ["Learning", learning.state, progress || (learning.state === "failed" && message)];
  byId("learning").textContent = learning.state === "idle" ? "" : said.filter(Boolean).join(": ");
}

/** Keep the figures up to date, and the questions when another model orders them. */
async function watch() {
  for (;;) {
    await pause(state.is_scoring || isLearning() ? 1 : 10);
    const { model: before, scored } = state;
    await refresh().catch(() => {}); // the next decision says so
    if (state.model !== before) one.order = [];
    if ((state.model !== before || (!scored && state.scored)) && !unsent.size) await attempt(() => view.load());
  }
}

// One tag, many images

const grid = {
  word: "Tag",
  tag: "",
  images: [],
  take: (tag) => show(Object.assign(grid, { tag })),
  async load() {
    if (!grid.tag) return fillNone("Name a tag: of the model, or a new one.");
    Object.assign(grid, await ask(`label/grid?count=${PAGE}&tag=${encodeURIComponent(grid.tag)}`));
    grid.images.forEach((image) => (image.answer = image.score > grid.threshold ? "yes" : "no"));
    showGrid();
  },
  keys: () => ({
    Enter: grid.images.length > 0 && accept,
    ...Object.fromEntries(grid.images.map((image, index) => [(index + 1) % 10, () => toggle(image)])),
  }),
};

const accept = () => decide(grid.images.map(({ sha256, answer }) => ({ sha256, tag: grid.tag, decision: answer })));

function toggle(image) {
  image.answer = { yes: "no", no: "unsure", unsure: "yes" }[image.answer];
  showGrid();
}

function showGrid() {
  const { tag, images, left, left_above, stop } = grid;
  const { right, seen, low, high } = grid.precision;
  const above = `${counted(left, "image")} left, ${left_above.toLocaleString("en")} above the threshold.`;
  const known = `${percent(low)} to ${percent(high)} of those have the tag (${right} of ${seen} drawn at random).`;
  const cell = (image, index) =>
    h("button", { class: image.answer, "data-key": image.sha256, title: image.names.join("\n"), click: () => toggle(image) },
      h("img", { src: picture(image.sha256, 320), alt: image.names[0] }),
      h("span", {}, h("kbd", {}, (index + 1) % 10), ` ${image.answer} `, h("small", {}, number(image.score))));
  fill(
    h("h2", {}, tagName(tag)),
    h("p", {}, `${above} ${seen ? known : "How many of those have the tag is not known yet."}`),
    stop && h("p", { class: "stop" }, h("b", {}, "You can stop: "), stop),
    h("ul", { class: "cells" }, images.map((image, index) => h("li", {}, cell(image, index)))),
    images.length ? mainButton("Keep these answers", accept) : h("p", { class: "how" }, "Nothing is left to ask."),
  );
}

// Rows of questions, of which one is current: the tags of one image, or doubts

/** Make a row current, none by -1, and show its image, the map of its tag, and the answers to it. */
function focus(index) {
  view.row = Math.min(index, view.rows.length - 1);
  const { sha256, tag } = view.rows[view.row] ?? view;
  const src = picture(sha256, 1024);
  const evidence = () => ask(`label/images/${sha256}/evidence?tag=${encodeURIComponent(tag)}`);
  const answers = Object.entries(ANSWERS).map(([key, answer]) =>
    h("button", { class: `button ${answer}`, "data-key": key, click: () => decideRow(answer) }, `${answer} `, h("kbd", {}, key)));
  const figure = tag ? mapped(src, "the image", tag, { ...model, name: state.model }, evidence) : plain(src, "the image", "");
  const question = ({ tag: name, note, answer }, at) =>
    h("li", {}, h("button", { "data-key": at, "aria-pressed": String(at === view.row), click: () => focus(at) },
      tagName(name), " ", h("small", {}, note), answer !== undefined && h("b", {}, answer ?? "")));
  fill(h("div", { class: "work" },
    h("div", { class: "figures" }, figure, tag && h("p", { class: "row" }, answers)),
    h("div", { class: "rows" }, view.parts(view.rows.map(question)))));
  document.querySelector(".rows [aria-pressed=true]")?.scrollIntoView({ block: "nearest" });
}

function decideRow(decision) {
  const { sha256, tag } = view.rows[view.row] ?? {};
  if (tag) decide([{ sha256, tag, decision }]);
}

const rowKeys = () => view.rows.length > 0 && ({
  ArrowDown: () => focus(view.row + 1),
  ArrowUp: () => focus(Math.max(0, view.row - 1)),
  ...Object.fromEntries(Object.entries(ANSWERS).map(([key, answer]) => [key, () => decideRow(answer)])),
});

const one = {
  word: "Add a tag",
  order: [],
  rows: [],
  choices: [],
  take(tag) {
    byId("word").value = "";
    return decide([{ sha256: one.sha256, tag, decision: "yes" }]);
  },
  async load(undone) {
    if (undone) one.order = [undone.sha256, ...one.order.filter((each) => each !== undone.sha256)];
    if (!one.order.length) one.order = await ask("label/images");
    const [sha256] = one.order;
    one.rows = one.choices = [];
    byId("word").form.hidden = !sha256;
    if (!sha256) return fillNone("No image has an undecided tag near its threshold.");
    const { near, decided, sure, groups, implied } = await ask(`label/images/${sha256}/tags`);
    const row = sha256 === one.sha256 ? one.row : 0;
    Object.assign(one, { sha256, groups, implied, open: near.length + decided.length, choices: Object.values(groups).flat() });
    one.rows = [...near, ...decided, ...sure].map(({ tag, score, threshold, answer }) => {
      const note = score === null ? "new" : `${number(score)}, threshold ${number(threshold)}`;
      return { sha256, tag, note, answer };
    });
    focus(Math.min(row, near.length - 1));
  },
  parts(questions) {
    const choice = ({ tag, answer }) =>
      h("button", { class: `button ${answer ?? ""}`, "data-key": `choose ${tag}`, click: () => one.take(tag) },
        h("kbd", {}, one.choices.findIndex((each) => each.tag === tag) + 1), " ", tagName(tag), answer ? `: ${answer}` : "");
    const group = ([name, some]) => [h("h2", {}, `${name}: one of`), h("p", { class: "row" }, some.map(choice))];
    const follows = Object.entries(one.implied).map(([tag, by]) => `${tag} (by ${by.join(", ")})`).join("; ");
    return [
      mainButton("Next image", nextImage),
      ...Object.entries(one.groups).flatMap(group),
      follows && h("p", { class: "how" }, `Implied: ${follows}`),
      h("h2", {}, "Near their thresholds, and decided"),
      h("ul", {}, questions.slice(0, one.open)),
      h("details", { open: one.isUnfolded === true, toggle: ({ target }) => (one.isUnfolded = target.open) },
        h("summary", {}, counted(questions.length - one.open, "sure tag")),
        h("ul", {}, questions.slice(one.open))),
    ];
  },
  keys: () => ({
    ...rowKeys(),
    ArrowRight: nextImage,
    Enter: nextImage,
    ...Object.fromEntries(one.choices.map(({ tag }, index) => [index + 1, () => one.take(tag)])),
  }),
};

function nextImage() {
  const { sha256 } = one;
  return attempt(async () => {
    if (!(await send())) return;
    one.order = one.order.filter((each) => each !== sha256);
    await view.load();
  });
}

const doubts = {
  row: 0,
  rows: [],
  async load() {
    doubts.rows = (await ask("label/doubts")).map(({ sha256, path, tag, labelled, score, confidence }) => {
      const label = labelled ? "labelled" : "not labelled";
      return { sha256, tag, path, note: `${label}, score ${number(score)}, confidence ${number(confidence)}` };
    });
    if (doubts.rows.length) focus(doubts.row);
    else fillNone("There are no doubts: the evaluation has no label_errors.csv about these images, or all are decided.");
  },
  parts: (questions) => [
    h("h2", {}, counted(questions.length, "doubt")),
    h("p", { class: "how" }, `Shown: ${doubts.rows[doubts.row].path}. Confidence: that the label is wrong, and not the model.`),
    h("ul", {}, questions),
  ],
  keys: rowKeys,
};

const VIEWS = { grid, image: one, doubts };
