// Brings a printed frame to life: hover a byte to see its field, and cut the frame in two to see
// what each recv_into returns. It decodes the bytes itself; tests compare it with the Python codec.
"use strict";

const KINDS = { 1: "MESSAGE", 2: "ERROR", 3: "EXIT", 4: "AUTH" };
const HAS_RAW_BYTES = 128;
const MAGIC = "MRY1";

/** Return a frame's fields, [{name, start, stop}], as wire.py lays them out. */
function decodeFrame(bytes) {
  // The frames of stage 1 have no magic.
  const first = String.fromCharCode(...bytes.slice(0, MAGIC.length)) === MAGIC ? MAGIC.length : 0;
  const kind = bytes[first];
  if (!KINDS[kind % HAS_RAW_BYTES]) throw new Error("no MiniRay frame");
  const prelude = first + 5;
  const length = new DataView(new Uint8Array(bytes.slice(first + 1, prelude)).buffer).getUint32(0);
  const raw = kind >= HAS_RAW_BYTES;
  let at = prelude + length;
  const text = new TextDecoder().decode(new Uint8Array(bytes.slice(prelude, at)));
  const fields = first ? [{ name: "magic", start: 0, stop: first }] : [];
  fields.push(
    { name: "kind", start: first, stop: first + 1 },
    { name: "length", start: first + 1, stop: prelude },
    { name: raw ? "header" : "body", start: prelude, stop: at },
  );
  for (const spec of raw ? JSON.parse(text).buffers : []) {
    fields.push({ name: "buffer", start: at, stop: at + spec.nbytes });
    at += spec.nbytes;
  }
  if (at !== bytes.length) throw new Error(`${bytes.length - at} bytes are in no field`);
  return fields;
}

/** Return [wanted, got] for each read of a decoder that never asks for more than it needs next. */
function readInTwo(bytes, cut) {
  const fields = decodeFrame(bytes);
  const prelude = fields.find((field) => field.name === "length").stop;
  const rest = fields.filter((field) => field.start >= prelude);
  const parts = [prelude, ...rest.map((field) => field.stop - field.start)];
  const reads = [];
  let wanted = parts.shift();
  for (let there of [cut, bytes.length - cut]) {
    while (there > 0) {
      const got = Math.min(wanted, there);
      reads.push([wanted, got]);
      there -= got;
      wanted -= got;
      if (wanted === 0) wanted = parts.shift() || 0;
    }
  }
  return reads;
}

function makeInspector(figure) {
  const cells = [...figure.querySelectorAll(".byte")];
  const bytes = cells.map((cell) => parseInt(cell.firstChild.textContent, 16));
  const fields = decodeFrame(bytes);
  const rows = [...figure.querySelectorAll(".field")];
  const show = (number) => rows.forEach((row, at) => row.classList.toggle("shown", at === number));
  fields.forEach((field, number) => {
    for (let at = field.start; at < field.stop; at += 1) {
      cells[at].addEventListener("mouseenter", () => show(number));
    }
    rows[number].addEventListener("focus", () => show(number));
  });
  figure.addEventListener("mouseleave", () => show(-1));

  const label = document.createElement("label");
  label.textContent = "Cut here: ";
  const slider = document.createElement("input");
  Object.assign(slider, { type: "range", min: 1, max: bytes.length - 1, value: Math.min(5, bytes.length - 1) });
  label.append(slider);
  const list = document.createElement("ol");
  list.className = "reads";
  list.setAttribute("aria-live", "polite");
  const update = () => {
    const cut = Number(slider.value);
    slider.setAttribute("aria-valuetext", `${cut} bytes arrive first`);
    cells.forEach((cell, at) => cell.classList.toggle("late", at >= cut));
    list.replaceChildren();
    let arrived = 0;
    for (const [wanted, got] of readInTwo(bytes, cut)) {
      const item = document.createElement("li");
      item.textContent = `wants ${wanted}, gets ${got}`;
      list.append(item);
      arrived += got;
      if (arrived === cut) {
        const pause = document.createElement("p");
        pause.textContent = `nothing more is there: it waits, and the other ${bytes.length - cut} bytes arrive`;
        item.append(pause);
      }
    }
  };
  slider.addEventListener("input", update);
  const controls = document.createElement("div");
  controls.className = "controls";
  controls.append(label, list);
  figure.append(controls);
  figure.classList.add("alive");
  update();
}

document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll(".frame-inspector").forEach(makeInspector);
});
window.miniray = { ...window.miniray, decodeFrame, readInTwo };
