// Images and their scores: sent in small batches, a few at a time, until each has those of every model in use.

import { ask, pause } from "./dom.js";

const BATCH = { images: 8, bytes: 8 * 2 ** 20 }; // below the limits of a public service
const AT_ONCE = 2;
const PATIENCE = 20; // times that a busy service is asked again

export class Uploads {
  /** `changed(image)` is called when an image has scores or an error, or without an image for a new `delay`. */
  constructor(changed) {
    this.images = [];
    this.delay = "";
    this.changed = changed;
    this.running = 0;
  }

  /** Add files; returns their images, {file, name, url, scores by model, error}. */
  add(files) {
    const added = [...files].map((file) => ({ file, name: file.webkitRelativePath || file.name, url: URL.createObjectURL(file), scores: {}, maps: new Map(), error: "" }));
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
    for (let next; (next = this.next()); ) await this.send(next.batch, next.model);
  }

  next() {
    for (const model of this.models) {
      const batch = [];
      let bytes = 0;
      for (const image of this.images) {
        if (image.error || image.scores[model] !== undefined) continue;
        bytes += image.file.size;
        if (batch.length && (bytes > BATCH.bytes || batch.length === BATCH.images)) break;
        batch.push(image);
      }
      if (!batch.length) continue;
      batch.forEach((image) => (image.scores[model] = null)); // on their way
      return { batch, model };
    }
  }

  async send(batch, model) {
    const form = new FormData();
    for (const [key, value] of Object.entries({ model, scores: true, threshold: 1 })) form.append(key, value);
    batch.forEach(({ file }) => form.append("files", file, file.name));
    let files;
    try {
      files = (await this.insist(form)).files;
    } catch (error) {
      files = error.body.files;
      if (!files && batch.length > 1 && [0, 400, 413].includes(error.status)) {
        for (const image of batch) await this.send([image], model); // one of them may be the reason
        return;
      }
      files ??= batch.map(() => ({ error: error.message }));
    }
    batch.forEach((image, index) => {
      const { scores, error, sha256, width, height } = files[index];
      if (error) delete image.scores[model];
      else Object.assign(image, { sha256, width, height }).scores[model] = scores;
      image.error = error ?? "";
      this.changed(image);
    });
  }

  /** Send a form, again when the service is busy. */
  async insist(form) {
    for (let attempt = 1; ; attempt++) {
      try {
        const answer = await ask("tag", { method: "POST", body: form });
        if (this.delay) this.tell("");
        return answer;
      } catch (error) {
        if (error.status === 0 && (await ask("health").catch(() => null))) {
          error.message = "could not be sent: it may be too large, or have changed on disk";
        }
        if (![429, 503].includes(error.status) || attempt === PATIENCE) throw error;
        this.tell(`${error.message}; going on in ${error.after || 1} s`);
        await pause(error.after || 1);
      }
    }
  }

  tell(delay) {
    this.delay = delay;
    this.changed();
  }
}

export const isImage = (file) => file.type.startsWith("image/") && file.type !== "image/svg+xml";
