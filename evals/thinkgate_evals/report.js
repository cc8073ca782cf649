"use strict";
// Filter buttons: within one suite, show the traces of one group, or all.
for (const section of document.querySelectorAll("[data-suite]")) {
  const buttons = section.querySelectorAll("[data-show]");
  const traces = section.querySelectorAll("[data-group]");
  const show = (wanted) => {
    for (const button of buttons) {
      button.setAttribute("aria-pressed", String(button.dataset.show === wanted));
    }
    for (const trace of traces) {
      trace.hidden = wanted !== "" && trace.dataset.group !== wanted;
    }
  };
  for (const button of buttons) {
    button.addEventListener("click", () => show(button.dataset.show));
  }
  // A problem's square leads to its trace, where the page has it.
  for (const square of section.querySelectorAll("[data-problem]")) {
    const trace = [...traces].find((one) => one.dataset.id === square.dataset.problem);
    if (trace === undefined) continue;
    square.classList.add("linked");
    square.addEventListener("click", () => {
      show("");
      trace.scrollIntoView({ block: "center" });
      trace.animate([{ outlineColor: "currentColor" }, { outlineColor: "transparent" }], 2000);
    });
  }
}
