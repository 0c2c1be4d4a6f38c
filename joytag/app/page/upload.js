// Images and their scores: sent in small batches, a few at a time, until each has those of every model in use.

import { ask, pause } from "./dom.js";

const BATCH = { images: 8, bytes: 8 * 2 ** 20 }; // below the limits of a public service
const AT_ONCE = 2;
const PATIENCE = 20; // times that a busy service is asked again

export class Uploads {
  images = [];
  delay = "";
  running = 0;

  /** `changed(image)` is called when an image has scores or an error, or without an image for a new `delay`. */
  constructor(changed) {
    this.changed = changed;
  }

  /** Add files; returns their images. */
  add(files) {
    const added = files.map((file) => {
      const [name, url] = [file.webkitRelativePath || file.name, URL.createObjectURL(file)];
      return { file, name, url, scores: {}, error: "" }; // scores by model
    });
    this.images.push(...added);
    return added;
  }

  /** Forget all images. */
  clear() {
    this.images.forEach(({ url }) => URL.revokeObjectURL(url));
    this.images = [];
  }

  /** Fetch what is missing of the scores of some models, by number. */
  run(models) {
    this.models = models;
    while (this.running < AT_ONCE) {
      this.running++;
      this.work().finally(() => this.running--);
    }
  }

  async work() {
    for (let next; (next = this.next()); ) await this.send(...next);
  }

  /** A model and the next images for it, whose scores are null while they are on their way. */
  next() {
    for (const model of this.models) {
      const waiting = this.images.filter(({ scores, error }) => !error && scores[model] === undefined);
      let bytes = 0;
      const fits = ({ file }, index) => (bytes += file.size) <= BATCH.bytes || index === 0;
      const batch = waiting.slice(0, BATCH.images).filter(fits);
      for (const { scores } of batch) scores[model] = null;
      if (batch.length) return [model, batch];
    }
  }

  async send(model, batch) {
    const form = new FormData();
    for (const [key, value] of Object.entries({ model, scores: true, threshold: 1 })) form.append(key, value);
    batch.forEach(({ file }) => form.append("files", file));
    const { files, status, message } = await this.insist(form);
    if (!files && batch.length > 1 && [0, 400, 413].includes(status)) {
      for (const image of batch) await this.send(model, [image]); // one of them may be the reason
      return;
    }
    batch.forEach((image, index) => {
      const { scores, error, width, height } = files?.[index] ?? { error: message };
      if (error) delete image.scores[model];
      else Object.assign(image, { width, height }).scores[model] = scores;
      image.error = error ?? "";
      this.changed(image);
    });
  }

  /** Send a form, again when the service is busy; returns the answer, or why there is none. */
  async insist(form) {
    for (let attempt = 1; ; attempt++) {
      const answer = await ask("tag", { method: "POST", body: form }).catch((error) => error);
      const { status, message, after } = answer;
      const isBusy = [429, 503].includes(status) && attempt < PATIENCE;
      this.delay = isBusy ? `${message}; going on in ${after || 1} s` : "";
      if (isBusy) {
        this.changed();
        await pause(after || 1);
      } else if (status === 0 && (await ask("health").catch(() => false))) {
        return { status, message: "could not be sent: it may be too large, or have changed on disk" };
      } else return { status, message, ...(answer.body ?? answer) };
    }
  }
}

export const isImage = (file) => file.type.startsWith("image/") && file.type !== "image/svg+xml";

/** The files of a drop; of folders, however deep, the images alone, named by their path. */
export async function dropped({ files, items }) {
  const entries = [...items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
  return entries.some(({ isDirectory }) => isDirectory) ? (await Promise.all(entries.map(filesIn))).flat() : [...files];
}

async function filesIn(entry) {
  if (entry.isFile) {
    const file = await new Promise((...ends) => entry.file(...ends));
    return [Object.defineProperty(file, "webkitRelativePath", { value: entry.fullPath.slice(1) })];
  }
  const found = [];
  const reader = entry.createReader(); // which returns a hundred entries at a time, and none at the end
  for (let some; (some = await new Promise((...ends) => reader.readEntries(...ends))).length; ) found.push(...some);
  found.sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
  return (await Promise.all(found.map(filesIn))).flat().filter(isImage);
}
