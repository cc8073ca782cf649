// What the user chose. Everything is kept over reloads but the API key, which lives with the tab.

const NAME = "thinkgate.settings";
const KEY = "thinkgate.key";
const DEFAULTS = { system: "", temperature: null, max_tokens: null, thinking_budget: null, effort: "", consensus: 1 };

export const settings = { ...DEFAULTS, ...read() };

export const apiKey = () => sessionStorage.getItem(KEY) ?? "";

export function change(values) {
  Object.assign(settings, values);
  localStorage.setItem(NAME, JSON.stringify(settings));
}

export function setApiKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

/** Fields of a chat request. */
export function sampling() {
  const body = {};
  if (settings.temperature !== null) body.temperature = settings.temperature;
  if (settings.max_tokens !== null) body.max_tokens = settings.max_tokens;
  if (settings.effort === "budget") body.thinking_budget = settings.thinking_budget;
  else if (settings.effort) body.reasoning_effort = settings.effort;
  if (settings.consensus > 1) body.consensus = settings.consensus;
  return body;
}

function read() {
  try {
    return JSON.parse(localStorage.getItem(NAME)) ?? {};
  } catch {
    return {}; // not ours
  }
}
