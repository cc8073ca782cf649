// Model text to elements. The text is hostile: its HTML is shown, not obeyed; pictures become links,
// so that nothing is fetched; and what comes out of the parsers goes through DOMPurify all the same.

import { Marked } from "./vendor/marked.esm.js";

const ALLOWED = {
  USE_PROFILES: { html: true, mathMl: true },
  FORBID_TAGS: ["img", "style", "form", "input", "button", "textarea", "select", "audio", "video"],
  FORBID_ATTR: ["style", "id", "name", "src", "srcset", "background", "xlink:href"],
  RETURN_DOM_FRAGMENT: true,
};
const ADDRESS = /^(?:https?|mailto):/i;
const LARGEST_FORMULA = 4000;

const marked = new Marked({ gfm: true, breaks: true, async: false });
marked.use({
  extensions: [
    formula("displayMath", /^\$\$([^]+?)\$\$|^\\\[([^]+?)\\\]/, /\$\$|\\\[/, true),
    formula("inlineMath", /^\\\(([^]+?)\\\)|^\$(?![\s$])([^$\n]*?[^\s$\\])\$(?!\d)/, /\\\(|\$/, false),
    { name: "boxed", level: "inline", start: (text) => at(text, /\\boxed\{/), tokenizer: boxed, renderer: (token) => math(token.text, false, token.raw) },
  ],
  renderer: {
    html: ({ text }) => escaped(text),
    image: ({ href, text }) => link(href, escaped(text || href)),
    link(token) {
      return link(token.href, this.parser.parseInline(token.tokens));
    },
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  },
});

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName !== "A" || !ADDRESS.test(node.getAttribute("href") ?? "")) {
    node.removeAttribute("href");
  } else {
    node.target = "_blank";
    node.rel = "noopener noreferrer nofollow";
  }
});

/** Replace what is in `element` by `text`, rendered. */
export function render(element, text) {
  const clean = DOMPurify.sanitize(marked.parse(text), ALLOWED);
  for (const table of clean.querySelectorAll("table, pre, math[display=block]")) {
    table.tabIndex = 0; // wide ones scroll, by keyboard as well
  }
  element.replaceChildren(clean);
}

function formula(name, pattern, begin, display) {
  return {
    name,
    level: "inline",
    start: (text) => at(text, begin),
    tokenizer(text) {
      const found = pattern.exec(text);
      return found ? { type: name, raw: found[0], text: found[1] ?? found[2] } : undefined;
    },
    renderer: (token) => math(token.text, display, token.raw),
  };
}

/** `\boxed{…}` outside a formula, braces balanced: how reasoning models mark an answer. */
function boxed(text) {
  if (!text.startsWith("\\boxed{")) return undefined;
  let depth = 0;
  for (let index = 6; index < text.length; index++) {
    if (text[index] === "{") depth++;
    if (text[index] === "}" && --depth === 0) {
      const raw = text.slice(0, index + 1);
      return { type: "boxed", raw, text: raw };
    }
  }
  return undefined;
}

function math(source, display, raw) {
  if (source.length > LARGEST_FORMULA) return escaped(raw);
  try {
    const markup = temml.renderToString(source, { displayMode: display, throwOnError: true, trust: false });
    // The page's policy allows no style attributes; of what they say only the box matters.
    return markup.replaceAll('style="padding:3pt;border:1px solid;"', 'class="boxed"').replace(/ style="[^"]*"/g, "");
  } catch {
    return `<code>${escaped(raw)}</code>`; // half a formula, or none
  }
}

function at(text, pattern) {
  const index = text.search(pattern);
  return index < 0 ? undefined : index;
}

function link(href, label) {
  return `<a href="${escaped(href)}">${label}</a>`;
}

function escaped(text) {
  return text.replace(/[&<>"']/g, (char) => `&#${char.charCodeAt(0)};`);
}
