// An image in its white square, and over it where it speaks for a tag.

import { h, number, signed, tagName } from "./dom.js";

const FOR = [230, 97, 0];
const AGAINST = [0, 90, 181];
const OPACITY = 0.8; // of the patch that weighs most

/** Return a figure with the image alone. */
export function plain(src, name, caption) {
  return h("figure", {}, square(src, name), h("figcaption", {}, caption));
}

/** Return a figure with the map that `load` promises, for a tag by a model. */
export function mapped(src, name, tag, model, load) {
  const frame = square(src, name);
  const caption = h("figcaption", { "aria-live": "polite" }, model.has_evidence ? `Where ${tag} is seen …` : `No map: ${model.name} has no linear head over patches.`);
  if (model.has_evidence) {
    load().then(
      (map) => {
        frame.classList.add("mapped");
        frame.append(overlay(map, tag));
        caption.replaceChildren(...legend(map, tag, model, frame));
      },
      (error) => caption.replaceChildren(h("span", { class: "error" }, `No map of ${tag}: ${error.message}`)),
    );
  }
  return h("figure", {}, frame, caption);
}

function square(src, name) {
  const image = h("img", { src, alt: name, decoding: "async" });
  const frame = h("div", { class: "square" }, image);
  image.addEventListener("error", () => image.replaceWith(h("p", { class: "how" }, `Your browser cannot show ${name}; the service can read it all the same.`)));
  return frame;
}

const strongest = (map) => Math.max(1e-9, ...map.values.flat().map(Math.abs));

function overlay(map, tag) {
  const canvas = h("canvas", { width: map.columns, height: map.rows, role: "img", "aria-label": inWords(map, tag) });
  const pixels = new ImageData(map.columns, map.rows);
  const most = strongest(map);
  map.values.flat().forEach((value, at) => {
    pixels.data.set([...(value > 0 ? FOR : AGAINST), Math.round((255 * OPACITY * Math.abs(value)) / most)], 4 * at);
  });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

function inWords(map, tag) {
  const values = map.values.flat();
  const place = (value) => {
    const at = values.indexOf(value);
    return `row ${Math.floor(at / map.columns) + 1}, column ${(at % map.columns) + 1} of ${map.rows} by ${map.columns} (${signed(value)})`;
  };
  return `Evidence for ${tag}: most for it at ${place(Math.max(...values))}; least at ${place(Math.min(...values))}.`;
}

function legend(map, tag, model, frame) {
  const values = map.values.flat();
  const sum = (sign) => values.reduce((total, value) => total + Math.max(0, sign * value), 0);
  const most = strongest(map);
  const readout = h("small", {}, "Point at a patch to read it.");
  frame.addEventListener("pointermove", (event) => {
    const box = frame.getBoundingClientRect();
    const row = Math.floor(((event.clientY - box.top) / box.height) * map.rows);
    const column = Math.floor(((event.clientX - box.left) / box.width) * map.columns);
    const value = map.values[row]?.[column];
    if (value !== undefined) readout.textContent = `row ${row + 1}, column ${column + 1}: ${signed(value, 3)}`;
  });
  return [
    h("p", {}, h("b", {}, tagName(tag)), ` by ${model.name}: logit ${signed(map.logit)} = ${number(sum(1))} for − ${number(sum(-1))} against; score ${number(map.score)}`),
    h("p", { class: "scale" }, h("span", {}, `against ${number(-most)}`), h("span", { class: "ramp" }), h("span", {}, `${signed(most)} for`)),
    h("p", { class: "how" }, "What each patch adds to the logit. ", readout),
  ];
}
