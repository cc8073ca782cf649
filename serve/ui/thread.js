// One conversation on the screen: its turns as elements, kept up to date while an answer is made.

import { count, h, icon, iconButton, seconds } from "./dom.js";
import { render } from "./markdown.js";

/** A turn of the user; `onedit(text)` when it was changed. */
export function question(turn, onedit) {
  const item = h("li", { className: "turn user" });
  const show = () => {
    const edit = iconButton("edit", "Edit and ask again", () => item.replaceChildren(editor(turn, show, onedit)));
    item.replaceChildren(h("div", { className: "text" }, turn.text), h("div", { className: "actions" }, edit, copy(() => turn.text)));
  };
  show();
  return item;
}

function editor(turn, cancel, onedit) {
  const area = h("textarea", { value: turn.text, "aria-label": "Your question" });
  const submit = (event) => {
    event.preventDefault();
    if (area.value.trim()) onedit(area.value.trim());
  };
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit(event);
    if (event.key === "Escape") {
      event.stopPropagation();
      cancel();
    }
  });
  setTimeout(() => area.focus());
  return h("form", { onsubmit: submit }, area,
    h("div", {}, h("button", { type: "button", className: "plain", onclick: cancel }, "Cancel"), h("button", { className: "primary" }, "Ask again")));
}

/** A turn of the model. `update()` shows what the turn holds by now. */
export class Answer {
  constructor(turn, { onagain, onkey }) {
    this.turn = turn;
    this.onagain = onagain;
    this.onkey = onkey;
    this.wait = h("p", { className: "waiting", role: "img", "aria-label": "Waiting" }, h("i"), h("i"), h("i"));
    this.label = h("span", { className: "label" });
    this.text = document.createTextNode("");
    this.pre = h("pre", { tabIndex: 0, role: "region", "aria-label": "Thought" }, this.text);
    this.thought = h("details", { className: "thought", hidden: true },
      h("summary", { onclick: () => { this.touched = true; } }, icon("thought"), this.label, chevron()), this.pre);
    this.prose = h("div", { className: "prose", hidden: true });
    this.rest = h("div");
    this.element = h("li", { className: "turn model" }, this.thought, this.prose, this.wait, this.rest);
    this.update(true);
  }

  get running() {
    return ["waiting", "thinking", "answering"].includes(this.turn.state);
  }

  /** `whole` renders at once; else an answer waits until the last rendering has paid off. */
  update(whole = false) {
    const { turn } = this;
    this.element.classList.toggle("live", turn.state === "thinking");
    this.element.setAttribute("aria-busy", this.running);
    this.wait.hidden = turn.state !== "waiting";
    this.showThought();
    this.prose.hidden = !turn.answer;
    if (turn.answer && (whole || !this.running || performance.now() >= (this.next ?? 0))) this.showAnswer();
    if (!this.running) this.rest.replaceChildren(...this.below());
  }

  showThought() {
    const { turn, text } = this;
    const thought = turn.reasoning ?? "";
    this.thought.hidden = !thought;
    if (!thought) return;
    if (thought.startsWith(text.data)) {
      const follow = this.pre.scrollTop + this.pre.clientHeight > this.pre.scrollHeight - 30;
      text.appendData(thought.slice(text.length));
      if (follow && turn.state === "thinking") this.pre.scrollTop = this.pre.scrollHeight;
    } else {
      text.data = thought;
    }
    if (!this.touched) this.thought.open = turn.state === "thinking";
    this.label.textContent = thoughtLabel(turn);
  }

  showAnswer() {
    if (this.shown === this.turn.answer) return;
    const begun = performance.now();
    this.shown = this.turn.answer;
    render(this.prose, this.shown);
    this.next = performance.now() + 4 * (performance.now() - begun);
  }

  below() {
    const { turn } = this;
    return [turn.consensus ? votes(turn.consensus) : null, remark(turn), problem(turn, this.onkey), this.actions()].filter(Boolean);
  }

  actions() {
    const again = iconButton("again", "Answer again", this.onagain, { className: "quiet again" });
    return h("div", { className: "actions" }, this.turn.answer ? copy(() => this.turn.answer) : null, again, h("span", { className: "meta" }, figures(this.turn)));
  }
}

/** Turns when its `details` opens. */
export function chevron() {
  const sign = icon("chevron");
  sign.classList.add("turnable");
  return sign;
}

function copy(text) {
  if (!navigator.clipboard) return null; // pages without TLS have none
  return iconButton("copy", "Copy", async (event) => {
    const button = event.currentTarget;
    await navigator.clipboard.writeText(text());
    button.title = "Copied";
  });
}

export function thoughtLabel(turn) {
  const took = turn.thinkSeconds === undefined ? "" : ` ${seconds(turn.thinkSeconds)}`;
  if (turn.state === "thinking") return `Thinking${took}`;
  const tokens = turn.usage?.completion_tokens_details?.reasoning_tokens;
  const cost = tokens === undefined ? "" : ` · ${count(tokens, "token")}`;
  if (turn.consensus) return `Thought of the elected answer${cost}, all samples`;
  return `Thought${took ? ` for${took}` : ""}${cost}`;
}

function figures(turn) {
  const { usage } = turn;
  const words = [];
  if (usage) words.push(count(usage.completion_tokens, "token"));
  if (turn.seconds) words.push(seconds(turn.seconds));
  if (usage && turn.seconds > 0.05) words.push(`${Math.round(usage.completion_tokens / turn.seconds)} tokens/s`);
  return words.join(" · ");
}

function remark(turn) {
  let text;
  if (turn.state === "stopped") text = "Stopped.";
  else if (turn.truncated && !turn.answer) text = "The thought was cut off before an answer came. Raise max tokens, or set a thinking budget.";
  else if (turn.truncated) text = "The thought was closed at its budget.";
  else if (turn.finish === "length") text = "The answer was cut off. Raise max tokens.";
  else if (turn.state === "done" && !turn.answer) text = "The answer is empty.";
  return text ? h("p", { className: "note" }, icon("warning"), text) : null;
}

function problem(turn, onkey) {
  if (turn.state !== "failed") return null;
  const enter = turn.status === 401 ? h("button", { type: "button", onclick: onkey }, "Enter an API key") : null;
  return h("p", { className: "note error", role: "alert" }, icon("warning"), h("span", {}, turn.error, " ", enter));
}

/** Who voted for what; see `consensus` in serve/README.md. */
export function votes(consensus) {
  const total = consensus.finished ?? consensus.votes.reduce((sum, vote) => sum + vote.count, 0);
  const won = consensus.votes[0]?.count ?? 0;
  const rows = consensus.votes.map((vote, index) => {
    const item = h("li", { className: index === 0 ? "won" : "" }, h("span", {}, vote.answer), h("span", { className: "count" }, `${vote.count} of ${total}`));
    item.style.setProperty("--share", `${(100 * vote.count) / total}%`);
    return item;
  });
  const heading = won ? `${won} of ${total} agree (${Math.round(consensus.agreement * 100)} %)` : "No sample came to an answer";
  const spared = (consensus.samples ?? total) - total;
  const early = spared > 0 ? h("small", {}, ` ${count(spared, "more sample")} could not change it and stopped early`) : null;
  return h("section", { className: "votes", "aria-label": "Votes" }, h("h3", {}, heading, early ?? ""), h("ul", {}, rows));
}
