"use strict";
// Rollouts: show those of one step, one range of rewards, or both. Without script all are there.
const filters = document.querySelector(".filters");
if (filters) {
  const step = filters.querySelector("[name=step]");
  const band = filters.querySelector("[name=band]");
  const count = filters.querySelector("output");
  const apply = () => {
    let shown = 0;
    for (const part of document.querySelectorAll("details.step")) {
      let here = 0;
      for (const prompt of part.querySelectorAll(".group")) {
        let fitting = 0;
        for (const rollout of prompt.querySelectorAll("article")) {
          rollout.hidden = band.value !== "" && rollout.dataset.band !== band.value;
          if (!rollout.hidden) fitting += 1;
        }
        prompt.hidden = fitting === 0;
        here += fitting;
      }
      part.hidden = here === 0 || (step.value !== "" && part.dataset.step !== step.value);
      part.open = part.open || (!part.hidden && (step.value !== "" || band.value !== ""));
      if (!part.hidden) shown += here;
    }
    count.textContent = `${shown} shown`;
  };
  step.addEventListener("change", apply);
  band.addEventListener("change", apply);
  filters.hidden = false;
  apply();
}
