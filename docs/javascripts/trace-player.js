// Plays a recorded run: a slider and two buttons step through the events of its diagram.
"use strict";

/** Return an event as a sentence, as tools/site/traces.py does. */
function describeEvent(event) {
  if (event.what === "begins" && event.text) return `${event.process} begins, forked by ${event.text}`;
  return `${event.process} ${event.what} ${event.text}`.trim();
}

function makePlayer(figure) {
  const { events } = JSON.parse(figure.dataset.trace);
  const parts = [...figure.querySelectorAll("[data-step]")];
  const diagram = figure.querySelector(".diagram");
  const button = (text, label) => {
    const made = document.createElement("button");
    Object.assign(made, { type: "button", textContent: text });
    made.setAttribute("aria-label", label);
    return made;
  };
  const back = button("\u25c0", "one step back");
  const forward = button("\u25b6", "one step forward");
  const slider = document.createElement("input");
  Object.assign(slider, { type: "range", min: 1, max: events.length, value: 1 });
  slider.setAttribute("aria-label", "step");
  const words = document.createElement("p");
  words.className = "words";
  words.setAttribute("aria-live", "polite");

  const show = (step) => {
    slider.value = step;
    const event = events[step - 1];
    words.textContent = `${step} of ${events.length}, ${event.at_ms.toFixed(1)} ms: ${describeEvent(event)}`;
    slider.setAttribute("aria-valuetext", words.textContent);
    let current = null;
    for (const part of parts) {
      const number = Number(part.dataset.step);
      part.classList.toggle("future", number > step - 1);
      part.classList.toggle("current", number === step - 1);
      if (number === step - 1) current = part;
    }
    if (current && diagram.scrollWidth > diagram.clientWidth) {
      const at = current.getBoundingClientRect().left - diagram.getBoundingClientRect().left;
      diagram.scrollLeft += at - diagram.clientWidth / 2;
    }
  };
  const go = (change) => {
    const step = Number(slider.value) + change;
    if (step >= 1 && step <= events.length) show(step);
  };
  back.addEventListener("click", () => go(-1));
  forward.addEventListener("click", () => go(1));
  slider.addEventListener("input", () => show(Number(slider.value)));
  const controls = document.createElement("div");
  controls.className = "controls";
  controls.append(back, slider, forward);
  diagram.parentElement.after(controls, words);
  figure.classList.add("alive");
  show(1);
}

document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll(".trace-player").forEach(makePlayer);
});
window.miniray = { ...window.miniray, describeEvent };
