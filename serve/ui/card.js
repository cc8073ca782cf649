// The model as its badge and its card show it: which files answer, and who vouched for them.

import { file } from "./api.js";
import { byId, h, icon, toast } from "./dom.js";
import { apiKey } from "./settings.js";

const gated = (model) => model.gate.verdict !== "ungated";

/** Show `model` in the header; an ungated one says so, large. */
export function showBadge(model) {
  const badge = byId("badge");
  const verdict = gated(model) ? `gate ${model.gate.verdict.toUpperCase()}` : "ungated";
  badge.className = gated(model) ? "" : "ungated";
  badge.replaceChildren(icon(gated(model) ? "shield" : "warning"), h("span", {}, model.id), `· ${verdict}`);
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
    ["Decided", gate.created ? new Date(gate.created).toLocaleString() : null],
    ["Report", gate.report ? report(gate) : null],
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

/** A link opens it; where keys are asked for, which a link cannot send, it is saved instead. */
function report({ report: path, decision }) {
  const address = `.${path}`; // also below a proxy's prefix
  if (!apiKey()) return h("a", { href: address, target: "_blank" }, "Open");
  const save = async () => {
    try {
      const page = URL.createObjectURL(await file(address));
      h("a", { href: page, download: `report-${decision}.html` }).click();
      URL.revokeObjectURL(page);
    } catch (error) {
      toast(error.message);
    }
  };
  return h("button", { type: "button", className: "link", onclick: save }, "Save");
}

const code = (text) => (text ? h("code", {}, text) : null);
