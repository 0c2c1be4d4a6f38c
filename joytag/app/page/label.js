// The tab Label: questions about the images of a folder, by tag, by image, or where an evaluation doubts a label.

import { ask, byId, counted, h, isTyped, number, percent, pause, refill, tagName } from "./dom.js";
import { mapped } from "./evidence.js";

const ANSWERS = ["yes", "no", "unsure"];
const PAGE = 10; // images of a grid: as many as there are number keys
const AHEAD = 100; // images that are fetched at once

let model, state, view, unsent = [], sending = Promise.resolve();

const picture = (sha256, side = 320) => `/api/label/images/${sha256}/picture?side=${side}`;
const post = (path, body, method = "POST") => ask(`label${path}`, { method, headers: { "Content-Type": "application/json" }, body: body && JSON.stringify(body) });

export async function openLabelling(served) {
  model = served;
  for (const each of document.querySelectorAll("[name=view]")) each.addEventListener("change", () => show(VIEWS[each.value]));
  byId("undo").addEventListener("click", undo);
  byId("resend").addEventListener("click", async () => (await keep([])) && attempt(view.load));
  byId("learn").addEventListener("click", () => watchLearning(state.learning.state in RUNNING ? post("/learn", undefined, "DELETE") : post("/learn")));
  byId("word").addEventListener("input", async ({ target }) => {
    const words = await ask(`label/words?text=${encodeURIComponent(target.value)}`);
    byId("words").replaceChildren(...words.map(({ tag, is_known, yes, no }) => h("option", { value: tag }, `${yes} yes, ${no} no${is_known ? "" : "; new"}`)));
  });
  byId("word").form.addEventListener("submit", (event) => {
    event.preventDefault();
    view.name(byId("word").value);
  });
  document.addEventListener("keydown", press);
  window.addEventListener("beforeunload", (event) => unsent.length && event.preventDefault());
  await refresh();
  await show(VIEWS.grid);
  watch();
}

function press(event) {
  if (byId("label").hidden || isTyped(event) || !view) return;
  const action = event.key === "z" ? undo : view.keys(event);
  if (!action) return;
  event.preventDefault();
  action();
}

async function show(next) {
  view = next;
  tell("");
  byId("word-name").textContent = view === VIEWS.image ? "Add a tag" : "Tag";
  byId("word").value = view === VIEWS.grid ? grid.tag : "";
  byId("word").form.hidden = view === VIEWS.doubts;
  await attempt(view.load);
}

const tell = (text) => (byId("told").textContent = text);
const attempt = (action) => action().catch((error) => tell(error.message));

// Decisions: they count as kept when the service has answered

/** Send decisions with those that could not be sent before; whether all are kept now. */
function keep(rows) {
  unsent.push(...rows);
  sending = sending.then(async () => {
    const now = unsent;
    if (now.length) {
      tell("Keeping …");
      try {
        const kept = await post("/decisions", now);
        unsent = unsent.slice(now.length);
        tell(`${counted(kept.length, "decision")} kept.`);
      } catch (error) {
        tell(`${counted(now.length, "decision")} not kept: ${error.message}`);
      }
    }
    byId("resend").hidden = !unsent.length;
    return !unsent.length;
  });
  return sending;
}

async function undo() {
  if (!(await keep([]))) return;
  await attempt(async () => {
    const rows = await post("/undo");
    await view.load(rows[0]);
    tell(rows.length ? `Undone: ${counted(rows.length, "decision")}, ${rows[0].tag} ${rows[0].decision} first.` : "There is nothing to undo.");
  });
}

// The folder, and learning

const RUNNING = { preparing: "Preparing", running: "Learning", loading: "Loading the new model" };

async function refresh() {
  state = await ask("label");
  const { folder, files, scored, broken, decided, is_scoring, failure, learning } = state;
  byId("collection").textContent = `${folder}: ${counted(files, "file")}, ${counted(scored, "image")} scored${is_scoring ? " so far" : ""}, ${decided.toLocaleString("en")} with decisions. Ordered by ${state.model}.${failure && ` Scoring has ended: ${failure}`}`;
  byId("broken").hidden = !Object.keys(broken).length;
  byId("broken").firstChild.textContent = `${counted(Object.keys(broken).length, "file")} cannot be used`;
  byId("broken").lastChild.replaceChildren(...Object.entries(broken).map(([name, reason]) => h("li", {}, h("b", {}, name), ` ${reason}`)));
  const isRunning = learning.state in RUNNING;
  byId("learn").textContent = isRunning ? "Stop learning" : "Learn from the decisions";
  byId("learnt").hidden = !isRunning;
  Object.assign(byId("learnt"), { max: learning.total || 1, value: learning.samples });
  const said = { done: "Learned; the new model orders the questions.", stopped: "Stopped learning.", failed: `Learning failed: ${learning.message}`, idle: "" };
  byId("learning").textContent = isRunning ? `${RUNNING[learning.state]}${learning.total ? `: ${learning.samples.toLocaleString("en")} of ${counted(learning.total, "sample")}` : " …"}` : said[learning.state];
}

/** Keep the figures up to date, and the questions when another model orders them. */
async function watch() {
  for (;;) {
    await pause(state.is_scoring || state.learning.state in RUNNING ? 1 : 10);
    const [before, had] = [state.model, state.scored];
    await refresh().catch(() => {}); // the next decision says so
    if ((state.model !== before || (!had && state.scored)) && !unsent.length) await attempt(view.load);
  }
}

const watchLearning = (asked) => attempt(async () => { await asked; await refresh(); });

// One tag, many images

const grid = { tag: "", images: [], answers: [] };

async function loadGrid() {
  if (!grid.tag) return refill(byId("questions"), h("p", { class: "none" }, "Name a tag: of the model, or a new one."));
  Object.assign(grid, await ask(`label/grid?count=${PAGE}&tag=${encodeURIComponent(grid.tag)}`));
  grid.images = grid.images.slice(0, PAGE);
  grid.answers = grid.images.map(({ score }) => (score > grid.threshold ? "yes" : "no"));
  showGrid();
}

function showGrid() {
  const { tag, images, answers, left, left_above, precision, stop } = grid;
  const { right, seen, low, high } = precision;
  const toggle = (index) => {
    answers[index] = ANSWERS[(ANSWERS.indexOf(answers[index]) + 1) % 3];
    showGrid();
  };
  grid.toggle = toggle;
  refill(
    byId("questions"),
    h("h2", {}, tagName(tag)),
    h("p", {}, `${counted(left, "image")} left, ${left_above.toLocaleString("en")} above the threshold. `, seen ? `${percent(low)} to ${percent(high)} of those have the tag (${right} of ${seen} drawn at random).` : "How many of those have the tag is not known yet."),
    stop && h("p", { class: "stop" }, h("b", {}, "You can stop: "), stop),
    h("ul", { class: "cells" }, images.map(({ sha256, names, score }, index) =>
      h("li", {}, h("button", { class: answers[index], "data-key": sha256, title: names.join("\n"), click: () => toggle(index) },
        h("img", { src: picture(sha256), alt: names[0] }),
        h("span", {}, h("kbd", {}, (index + 1) % 10), ` ${answers[index]} `, h("small", {}, number(score))))))),
    images.length ? h("p", {}, h("button", { class: "button strong", "data-key": "accept", click: accept }, "Keep these answers ", h("kbd", {}, "Enter"))) : h("p", { class: "none" }, "Nothing is left to ask."),
  );
}

async function accept() {
  const rows = grid.images.map(({ sha256 }, index) => ({ sha256, tag: grid.tag, decision: grid.answers[index] }));
  unsent = []; // of this page, which may have changed since
  if (await keep(rows)) await attempt(loadGrid);
}

// One image

const one = { order: [], at: 0, rows: [], row: 0 };

async function loadImage(undone) {
  if (!one.order.length || undone) one.order = await ask(`label/images?limit=${AHEAD}`);
  if (undone) one.order = [undone.sha256, ...one.order.filter((each) => each !== undone.sha256)];
  if (undone) one.at = 0;
  const before = one.sha256;
  one.sha256 = one.order[one.at];
  if (!one.sha256) return refill(byId("questions"), h("p", { class: "none" }, "No image has an undecided tag near its threshold."));
  one.tags = await ask(`label/images/${one.sha256}/tags`);
  const { near, decided, groups, implied } = one.tags;
  one.choices = Object.values(groups).flat();
  one.rows = [...near, ...decided];
  const first = undone ? one.rows.findIndex(({ tag }) => tag === undone.tag) : one.sha256 === before ? Math.min(one.row, near.length - 1) : 0;
  one.row = Math.max(first, 0);
  one.implied = Object.entries(implied);
  showOne();
}

function showOne() {
  const { sha256, tags, rows, choices, implied } = one;
  const current = rows[one.row]?.tag;
  refill(
    byId("questions"),
    h("div", { class: "work" },
      h("div", { class: "view" }, figure(sha256, current)),
      h("div", {},
        h("p", { class: "row" }, h("button", { class: "button strong", "data-key": "next", click: nextImage }, "Next image ", h("kbd", {}, "Enter"))),
        Object.entries(tags.groups).map(([name, group]) => [h("h2", {}, `${name}: one of`), h("p", { class: "row" }, group.map((each) => h("button", { class: `button ${each.answer ?? ""}`, click: () => pick(each.tag) }, h("kbd", {}, choices.indexOf(each) + 1), " ", tagName(each.tag), each.answer ? `: ${each.answer}` : "")))]).flat(),
        implied.length > 0 && h("p", { class: "how" }, "Implied: ", implied.map(([tag, by]) => `${tag} (by ${by.join(", ")})`).join("; ")),
        h("h2", {}, "Near their thresholds, and decided"),
        h("ul", { class: "tags" }, rows.map((row, index) => question(row, index === one.row, () => focus(index), (answer) => answerOne(index, answer)))),
        h("details", {}, h("summary", {}, `${counted(tags.sure.length, "sure tag")}`), h("ul", { class: "tags" }, tags.sure.map((row) => question(row, false, undefined, (answer) => answerTag(row.tag, answer))))),
      )),
  );
  document.querySelector(".question.current")?.scrollIntoView({ block: "nearest" });
}

const figure = (sha256, tag) => mapped(picture(sha256, 1024), "the image", tag, { name: state.model, has_evidence: Boolean(tag) && model.has_evidence }, () => ask(`label/images/${sha256}/evidence?tag=${encodeURIComponent(tag)}`));

function question({ tag, score, threshold, answer }, isCurrent, choose, decide) {
  return h("li", { class: `question${isCurrent ? " current" : ""}` },
    h("button", { class: "ask", "data-key": `ask ${tag}`, "aria-pressed": String(isCurrent), click: choose ?? (() => {}) }, tagName(tag), h("small", {}, threshold === undefined ? "" : score === null ? " new" : ` ${number(score)}, threshold ${number(threshold)}`)),
    h("span", { class: "answers" }, ANSWERS.map((each) => h("button", { class: "button", "data-key": `${each} ${tag}`, "aria-label": `${tag}: ${each}`, "aria-pressed": String(each === answer), click: () => decide(each) }, each))));
}

function focus(index) {
  one.row = Math.min(Math.max(index, 0), one.rows.length - 1);
  showOne();
}

async function answerTag(tag, decision) {
  if (await keep([{ sha256: one.sha256, tag, decision }])) await attempt(loadImage);
}

async function answerOne(index, decision) {
  if (one.rows[index]) await answerTag(one.rows[index].tag, decision);
}

const pick = (tag) => answerTag(tag, "yes");

async function nextImage() {
  if (!(await keep([]))) return;
  one.at++;
  if (one.at >= one.order.length) Object.assign(one, { order: [], at: 0 });
  await attempt(loadImage);
}

// Doubts

const doubts = { list: [], at: 0 };

async function loadDoubts() {
  doubts.list = await ask("label/doubts");
  doubts.at = Math.min(doubts.at, Math.max(0, doubts.list.length - 1));
  showDoubt();
}

function showDoubt() {
  const doubt = doubts.list[doubts.at];
  if (!doubt) return refill(byId("questions"), h("p", { class: "none" }, "There are no doubts: the model's evaluation has no label_errors.csv about these images, or all are decided."));
  const { sha256, path, tag, labelled, score, confidence } = doubt;
  refill(byId("questions"), h("div", { class: "work" },
    h("div", { class: "view" }, figure(sha256, tag)),
    h("div", {},
      h("h2", {}, `Doubt ${doubts.at + 1} of ${doubts.list.length}`),
      h("p", {}, `${path} is labelled ${labelled ? "" : "as without "}`, h("b", {}, tagName(tag)), `; its score is ${number(score)}. That the label is wrong has a confidence of ${number(confidence)}.`),
      h("ul", { class: "tags" }, question({ tag }, true, undefined, (answer) => answerDoubt(answer))),
      h("p", {}, h("button", { class: "button", "data-key": "later", click: () => stepDoubt(1) }, "Later ", h("kbd", {}, "→"))))));
}

async function answerDoubt(decision) {
  const { sha256, tag } = doubts.list[doubts.at];
  if (await keep([{ sha256, tag, decision }])) await attempt(loadDoubts);
}

function stepDoubt(by) {
  doubts.at = Math.min(Math.max(doubts.at + by, 0), doubts.list.length - 1);
  showDoubt();
}

const INITIALS = { y: "yes", n: "no", u: "unsure" };
const VIEWS = {
  grid: {
    load: loadGrid,
    name: (tag) => show(VIEWS.grid, (grid.tag = tag)),
    keys: ({ key, target }) => (/^[0-9]$/.test(key) ? grid.images[(Number(key) + 9) % 10] && (() => grid.toggle((Number(key) + 9) % 10)) : key === "Enter" && grid.images.length && (!target.closest("button") || target.closest(".cells")) && accept),
  },
  image: {
    load: loadImage,
    name: (tag) => answerTag(tag, "yes"),
    keys: ({ key, target }) => ({ ArrowDown: () => focus(one.row + 1), ArrowUp: () => focus(one.row - 1), ArrowRight: nextImage, Enter: !target.closest("button") && nextImage })[key] || (INITIALS[key] && (() => answerOne(one.row, INITIALS[key]))) || (one.choices?.[Number(key) - 1] && (() => pick(one.choices[Number(key) - 1].tag))),
  },
  doubts: {
    load: loadDoubts,
    name: () => {},
    keys: ({ key }) => doubts.list.length > 0 && (({ ArrowRight: () => stepDoubt(1), ArrowLeft: () => stepDoubt(-1) })[key] || (INITIALS[key] && (() => answerDoubt(INITIALS[key])))),
  },
};
