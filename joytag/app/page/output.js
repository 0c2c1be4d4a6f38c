// What is taken away: captions as text, sidecars in a zip, a table.

const isKaomoji = (tag) => [...tag].length <= 3 || !/[\p{L}\p{N}]{2}/u.test(tag);
const spaced = (tag) => (isKaomoji(tag) ? tag : tag.replaceAll("_", " "));
const escaped = (tag) => tag.replace(/(?<!\\)[()]/g, "\\$&");

/** Captions by their style, as `joytag tag` writes them. */
export const STYLES = {
  "sd-scripts": (tags) => tags.map(spaced).join(", "),
  booru: (tags) => tags.join(" "),
  prompt: (tags) => tags.map((tag) => escaped(spaced(tag))).join(", "),
};

/** The names of the sidecars of some images: no two the same, on any system. */
export function sidecarNames(names) {
  const taken = new Set();
  return names.map((name) => {
    const stem = name.replace(/\.[^./]+$/, "");
    let chosen = `${stem}.txt`;
    for (let copy = 1; taken.has(chosen.toLowerCase()); copy++) chosen = `${copy > 1 ? `${name} (${copy})` : name}.txt`;
    taken.add(chosen.toLowerCase());
    return chosen;
  });
}

/** A table with the columns of `joytag tag --output csv`. */
export function csv(rows) {
  const cell = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  return [["file_name", "text"], ...rows].map((row) => row.map(cell).join(",") + "\r\n").join("");
}

/** A zip archive of [name, text] pairs, uncompressed. */
export function zip(pairs) {
  const encoder = new TextEncoder();
  const parts = [];
  const entries = [];
  let offset = 0;
  for (const [name, text] of pairs) {
    const [path, data] = [encoder.encode(name), encoder.encode(text)];
    const size = long(data.length);
    // Version 2.0, names in UTF-8, stored, 1 January 1980; then CRC, both sizes, the length of the name, no extra field.
    const common = [20, 0x0800, 0, 0, 0x21, ...long(crc32(data)), ...size, ...size, path.length, 0];
    parts.push(Uint16Array.of(0x4b50, 0x0403, ...common), path, data);
    entries.push(Uint16Array.of(0x4b50, 0x0201, 20, ...common, 0, 0, 0, 0, 0, ...long(offset)), path);
    offset += 30 + path.length + data.length;
  }
  const sizes = [...long(new Blob(entries).size), ...long(offset)];
  const end = Uint16Array.of(0x4b50, 0x0605, 0, 0, pairs.length, pairs.length, ...sizes, 0);
  return new Blob([...parts, ...entries, end], { type: "application/zip" });
}

/** A number of four bytes as two of two bytes, the lower one first. */
const long = (value) => [value & 0xffff, value >>> 16];

function crc32(data) {
  let crc = ~0;
  for (const byte of data) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 && 0xedb88320);
  }
  return ~crc;
}

/** Have the browser save a text or a Blob. */
export function save(name, content) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content]));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
