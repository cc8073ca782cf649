// The settings dialog, the two choices beside the question, and the colours.

import { byId, closeToast, toast } from "./dom.js";
import { apiKey, change, setApiKey, settings } from "./settings.js";

const THEMES = ["", "light", "dark"];
const dialog = byId("settings");
const fields = dialog.querySelector("form").elements;

/** `onkey` runs when the API key changed, `onforget` to delete all conversations. */
export function connectSettings({ onkey, onforget }) {
  byId("open-settings").addEventListener("click", () => openSettings());
  byId("close-settings").addEventListener("click", () => dialog.close());
  dialog.querySelector("form").addEventListener("submit", () => keep(onkey));
  byId("forget").addEventListener("click", () => {
    dialog.close();
    toast("Delete all conversations of this browser?", "Delete", onforget);
  });
  byId("effort").addEventListener("change", (event) => change({ effort: event.target.value }));
  byId("consensus").addEventListener("change", (event) => change({ consensus: Number(event.target.value) }));
  for (const id of ["effort", "consensus"]) byId(id).addEventListener("change", showChoices);
  byId("theme").addEventListener("click", nextTheme);
  showChoices();
  showTheme();
}

/** What a request gets where nothing is set. */
export function showDefaults(sampling) {
  fields.temperature.placeholder = sampling?.temperature === undefined ? "Model's own" : `Model's own: ${sampling.temperature}`;
  fields.max_tokens.placeholder = "No limit";
}

export function openSettings(focus) {
  for (const name of ["system", "temperature", "max_tokens", "thinking_budget"]) fields[name].value = settings[name] ?? "";
  fields.key.value = apiKey();
  closeToast();
  dialog.showModal();
  if (focus) fields[focus].focus();
}

function keep(onkey) {
  const number = (name) => (fields[name].value === "" ? null : Number(fields[name].value));
  const budget = number("thinking_budget");
  let { effort } = settings;
  if (budget !== settings.thinking_budget) effort = budget === null ? "" : "budget";
  change({ system: fields.system.value.trim(), temperature: number("temperature"), max_tokens: number("max_tokens"), thinking_budget: budget, effort });
  showChoices();
  if (fields.key.value.trim() !== apiKey()) {
    setApiKey(fields.key.value.trim());
    onkey();
  }
}

function showChoices() {
  const budget = byId("effort").querySelector("option[value=budget]");
  budget.hidden = settings.thinking_budget === null;
  budget.textContent = `Think ${settings.thinking_budget ?? 0} tokens`;
  byId("effort").value = settings.effort;
  byId("consensus").value = String(settings.consensus);
  byId("effort").parentElement.classList.toggle("set", settings.effort !== "");
  byId("consensus").parentElement.classList.toggle("set", settings.consensus > 1);
}

function nextTheme() {
  const now = document.documentElement.dataset.theme ?? "";
  const next = THEMES[(THEMES.indexOf(now) + 1) % THEMES.length];
  if (next) {
    document.documentElement.dataset.theme = next;
    localStorage.setItem("thinkgate.theme", next);
  } else {
    delete document.documentElement.dataset.theme;
    localStorage.removeItem("thinkgate.theme");
  }
  showTheme();
}

function showTheme() {
  byId("theme").querySelector("span").textContent = `Theme: ${document.documentElement.dataset.theme ?? "system"}`;
}
