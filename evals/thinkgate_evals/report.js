"use strict";
// Filter buttons: show the traces of one group, or all.
const buttons = document.querySelectorAll("[data-show]");
for (const button of buttons) {
  button.addEventListener("click", () => {
    for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
    for (const trace of document.querySelectorAll("[data-group]")) {
      trace.hidden = button.dataset.show !== "" && trace.dataset.group !== button.dataset.show;
    }
  });
}
// Charts: the nearest point's value while the pointer is over one.
for (const chart of document.querySelectorAll("svg.chart")) {
  const points = JSON.parse(chart.dataset.points);
  const dot = chart.querySelector(".hover");
  const readout = chart.querySelector(".readout");
  const show = (x, y, text) => {
    dot.setAttribute("cx", x);
    dot.setAttribute("cy", y);
    readout.textContent = text;
  };
  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * chart.viewBox.baseVal.width;
    const near = points.reduce((a, b) => (Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a));
    show(...near);
  });
  chart.addEventListener("pointerleave", () => show(-9, -9, ""));
}
