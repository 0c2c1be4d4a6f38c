// An image in its white square, and over it where it speaks for a tag.

import { h, number, signed, tagName } from "./dom.js";

const FOR = [230, 97, 0];
const AGAINST = [0, 90, 181];
const OPACITY = 0.8; // of the patch that weighs most

/** Return a figure with the image alone. */
export function plain(src, name, caption) {
  const image = h("img", { src, alt: name, decoding: "async" });
  const instead = `Your browser cannot show ${name}; the service can read it all the same.`;
  image.addEventListener("error", () => image.replaceWith(h("p", { class: "how" }, instead)));
  return h("figure", {}, h("div", { class: "square" }, image), h("figcaption", { "aria-live": "polite" }, caption));
}

/** Return a figure with the map that `load` promises, for a tag by a model. */
export function mapped(src, name, tag, model, load) {
  if (!model.has_evidence) return plain(src, name, `No map: ${model.name} has no linear head over patches.`);
  const figure = plain(src, name, `Where ${tag} is seen …`);
  const [frame, caption] = figure.children;
  load().then(
    (map) => draw(map, tag, model, frame, caption),
    (error) => caption.replaceChildren(h("span", { class: "error" }, `No map of ${tag}: ${error.message}`)),
  );
  return figure;
}

function draw({ rows, columns, values, logit, score }, tag, model, frame, caption) {
  const all = values.flat();
  const most = Math.max(1e-9, ...all.map(Math.abs));
  const sum = (sign) => all.reduce((total, value) => total + Math.max(0, sign * value), 0);
  const place = (value) => {
    const at = all.indexOf(value);
    return `row ${Math.floor(at / columns) + 1}, column ${(at % columns) + 1} of ${rows} by ${columns} (${signed(value)})`;
  };
  const inWords = `most for it at ${place(Math.max(...all))}; least at ${place(Math.min(...all))}`;
  const canvas = h("canvas", { width: columns, height: rows, role: "img", "aria-label": `Evidence for ${tag}: ${inWords}.` });
  const pixels = new ImageData(columns, rows);
  all.forEach((value, at) => {
    pixels.data.set([...(value > 0 ? FOR : AGAINST), Math.round((255 * OPACITY * Math.abs(value)) / most)], 4 * at);
  });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  frame.classList.add("mapped");
  frame.append(canvas);

  const readout = h("small", {}, "Point at a patch to read it.");
  canvas.addEventListener("pointermove", ({ offsetX, offsetY }) => {
    const row = Math.floor((offsetY / canvas.clientHeight) * rows);
    const column = Math.floor((offsetX / canvas.clientWidth) * columns);
    const value = values[row]?.[column];
    if (value !== undefined) readout.textContent = `row ${row + 1}, column ${column + 1}: ${signed(value, 3)}`;
  });
  const figures = `logit ${signed(logit)} = ${number(sum(1))} for − ${number(sum(-1))} against; score ${number(score)}`;
  caption.replaceChildren(
    h("p", {}, h("b", {}, tagName(tag)), ` by ${model.name}: ${figures}`),
    h("p", { class: "scale" }, `against ${number(-most)}`, h("span", { class: "ramp" }), `${signed(most)} for`),
    h("p", { class: "how" }, "What each patch adds to the logit, compared with an empty image. ", readout),
  );
}
