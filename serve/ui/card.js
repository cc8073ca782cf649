// The model as its badge and its card show it: which files answer, and who vouched for them.

import { byId, h, icon } from "./dom.js";

const gated = (model) => model.gate.verdict !== "ungated";

/** Show `model` in the header; an ungated one says so, large. */
export function showBadge(model) {
  const badge = byId("badge");
  const text = gated(model) ? `${model.id} · gate ${model.gate.verdict.toUpperCase()}` : `${model.id} · ungated`;
  badge.className = gated(model) ? "" : "ungated";
  badge.replaceChildren(icon(gated(model) ? "shield" : "warning"), h("span", {}, text));
  badge.onclick = () => showCard(model);
  badge.hidden = false;
  byId("ungated").hidden = gated(model);
  byId("welcome-model").textContent = `${model.id} shows its reasoning apart from its answer.`;
}

function showCard(model) {
  const { gate } = model;
  const facts = [
    ["Gate", gated(model) ? gate.verdict.toUpperCase() : "none: for development only"],
    ["Decision", code(gate.decision)],
    ["Policy", gate.policy],
    ["Decided", gate.created],
    ["Report", gate.report ? h("a", { href: new URL(gate.report, document.baseURI).pathname, target: "_blank" }, "open") : null],
    ["Files", code(model.digest ?? "unknown (a Hub model)")],
    ["Context", `${model.max_model_len.toLocaleString("en")} tokens`],
    ["Thought tags", code(model.reasoning_tags?.join(" … "))],
    ["Sampling", Object.entries(model.sampling_defaults ?? {}).map(([key, value]) => `${key} ${value}`).join(", ") || null],
  ];
  const list = facts.filter(([, value]) => value).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]);
  const dialog = byId("card");
  const close = h("button", { className: "quiet", type: "button", "aria-label": "Close", onclick: () => dialog.close() }, icon("close"));
  dialog.replaceChildren(h("div", { className: "head" }, h("h2", { id: "card-title" }, model.id), close), h("dl", { className: "facts" }, list));
  dialog.showModal();
}

const code = (text) => (text ? h("code", {}, text) : null);
