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
    const path = encoder.encode(name);
    const data = encoder.encode(text);
    // Version 2.0, names in UTF-8, stored, 1 January 1980; then CRC, both sizes, the length of the name, no extra field.
    const common = [[20, 2], [0x0800, 2], [0, 2], [0, 2], [0x21, 2], [crc32(data), 4], [data.length, 4], [data.length, 4], [path.length, 2], [0, 2]];
    parts.push(record(0x04034b50, common), path, data);
    entries.push(record(0x02014b50, [[20, 2], ...common, [0, 2], [0, 2], [0, 2], [0, 4], [offset, 4]]), path);
    offset += 30 + path.length + data.length;
  }
  const size = entries.reduce((sum, entry) => sum + entry.length, 0);
  const end = record(0x06054b50, [[0, 2], [0, 2], [pairs.length, 2], [pairs.length, 2], [size, 4], [offset, 4], [0, 2]]);
  return new Blob([...parts, ...entries, end], { type: "application/zip" });
}

/** A record of little-endian numbers, [value, bytes], after its signature. */
function record(signature, fields) {
  const view = new DataView(new ArrayBuffer(4 + fields.reduce((sum, [, bytes]) => sum + bytes, 0)));
  let at = 0;
  for (const [value, bytes] of [[signature, 4], ...fields]) {
    if (bytes === 4) view.setUint32(at, value, true);
    else view.setUint16(at, value, true);
    at += bytes;
  }
  return new Uint8Array(view.buffer);
}

const CRC = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? (byte >>> 1) ^ 0xedb88320 : byte >>> 1;
  return byte;
});

function crc32(data) {
  let crc = ~0;
  for (const byte of data) crc = CRC[(crc ^ byte) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}

/** Have the browser save a text or a Blob. */
export function save(name, content) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content]));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
