// Keeps what the reader predicted, in this browser and nowhere else, and shows it beside what happened.
// Without scripts a prediction is a question, a list of answers, and an answer that is folded away.
"use strict";

const STORE = "miniray-prediction:";

function remember(key, value) {
  try {
    if (value) localStorage.setItem(key, value);
    else localStorage.removeItem(key);
  } catch { /* storage is full or forbidden: then it is kept for as long as the page is open */ }
}

function recall(key) {
  try {
    return localStorage.getItem(key) || "";
  } catch {
    return "";
  }
}

/** Turn a list of answers into choices; return the form. */
function makeChoices(list, name, chosen, onChange) {
  const form = document.createElement("fieldset");
  form.append(Object.assign(document.createElement("legend"), { textContent: "Your prediction" }));
  for (const item of list.querySelectorAll(":scope > li")) {
    const label = document.createElement("label");
    const input = Object.assign(document.createElement("input"), { type: "radio", name });
    input.value = item.textContent.trim();
    input.checked = input.value === chosen;
    input.addEventListener("change", () => onChange(input.value));
    const words = document.createElement("span");
    words.append(...[...item.childNodes].map((node) => node.cloneNode(true)));
    label.append(input, words);
    form.append(label);
  }
  list.replaceWith(form);
  return form;
}

/** Return a place to write a prediction in. */
function makeTextArea(details, written, onChange) {
  const form = document.createElement("fieldset");
  form.append(Object.assign(document.createElement("legend"), { textContent: "Your prediction" }));
  const area = Object.assign(document.createElement("textarea"), { rows: 2, value: written });
  area.setAttribute("aria-label", "Your prediction");
  area.addEventListener("input", () => onChange(area.value.trim()));
  form.append(area);
  details.before(form);
  return form;
}

function makePrediction(details, number) {
  const key = `${STORE}${location.pathname.split("/").pop()}:${number}`;
  let said = recall(key);
  const shown = Object.assign(document.createElement("div"), { className: "predicted" });
  const happened = Object.assign(document.createElement("div"), { className: "happened" });
  happened.append(...[...details.children].filter((child) => child.tagName !== "SUMMARY"));
  const pair = Object.assign(document.createElement("div"), { className: "pair" });
  pair.append(shown, happened);
  details.append(pair);
  const show = () => {
    shown.replaceChildren(
      Object.assign(document.createElement("b"), { textContent: "You predicted" }),
      Object.assign(document.createElement("p"), {
        textContent: said || "Nothing. Next time, one guess: to be wrong is the useful case.",
      }),
    );
  };
  const onChange = (value) => {
    said = value;
    remember(key, value);
    show();
  };
  const before = details.previousElementSibling;
  const form = before && before.tagName === "UL"
    ? makeChoices(before, key, said, onChange)
    : makeTextArea(details, said, onChange);
  form.className = "prediction";
  show();
}

document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("details.predict").forEach(makePrediction);
});
