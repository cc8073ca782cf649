// Making elements. Text is always text: nothing here takes markup.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** An element with properties (`on…` are listeners, names with a dash attributes) and children. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** One of the symbols in index.html. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

export function iconButton(name, label, onclick, extra = {}) {
  return h("button", { type: "button", className: "quiet", title: label, "aria-label": label, onclick, ...extra }, icon(name));
}

let fading = 0;

/** A short message at the bottom, with one thing to do about it. */
export function toast(text, action, onclick) {
  const box = byId("toast");
  clearTimeout(fading);
  const button = action ? h("button", { type: "button", onclick: () => { closeToast(); onclick(); } }, action) : null;
  box.replaceChildren(text, ...(button ? [button] : []));
  box.hidden = false;
  fading = setTimeout(closeToast, 8000);
}

/** What it said is settled. */
export function closeToast() {
  byId("toast").hidden = true;
}

/** Tell screen readers; nothing is seen. */
export function announce(text) {
  byId("status").textContent = text;
}

export function seconds(value) {
  if (value < 10) return `${value.toFixed(1)} s`;
  if (value < 60) return `${Math.round(value)} s`;
  return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
}

export const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
