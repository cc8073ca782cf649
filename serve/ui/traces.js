// The trace browser: what this server was asked, by this key, and what it answered.

import { deleteTrace, trace, traces } from "./api.js";
import { byId, count, h, icon, seconds, toast } from "./dom.js";
import { render } from "./markdown.js";
import { openSettings } from "./options.js";
import { chevron, votes } from "./thread.js";

const PAGE = 30;
const view = byId("traces");
const filter = { q: "", status: "", after: [] };
let wanted = 0;
let typed; // a search about to start

/** The list, or one trace when an id is given. */
export async function showTraces(id) {
  const turn = ++wanted;
  clearTimeout(typed);
  let content;
  try {
    content = id ? sheet(await trace(id)) : list(await traces(query()));
  } catch (error) {
    content = [problem(error)];
  }
  if (turn !== wanted) return; // something newer was asked for
  const typing = document.activeElement?.name === "q" ? document.activeElement.selectionEnd : null;
  view.replaceChildren(...content);
  if (typing === null) view.focus({ preventScroll: true });
  else view.querySelector("[name=q]")?.focus();
}

function query() {
  const asked = { limit: PAGE };
  if (filter.q) asked.q = filter.q;
  if (filter.status) asked.status = filter.status;
  if (filter.after.length) asked.after = filter.after.at(-1);
  return asked;
}

function list(page) {
  const rows = page.data.map(row);
  const none = h("p", { className: "empty" }, filter.q || filter.status ? "No trace fits." : "Nothing was asked yet.");
  return [bar(), rows.length ? h("ul", { className: "list" }, rows) : none, pager(page)];
}

function bar() {
  const again = (change) => {
    Object.assign(filter, change, { after: [] });
    showTraces();
  };
  const search = h("input", { type: "search", name: "q", value: filter.q, placeholder: "Search questions and answers", "aria-label": "Search traces",
    oninput: (event) => { clearTimeout(typed); typed = setTimeout(again, 250, { q: event.target.value }); } });
  const names = [["", "All"], ["ok", "Answered"], ["truncated", "Cut off"], ["aborted", "Stopped"], ["error", "Failed"]];
  const status = h("select", { "aria-label": "Status", onchange: (event) => again({ status: event.target.value }) },
    names.map(([value, name]) => h("option", { value, selected: value === filter.status }, name)));
  return h("div", { className: "bar" }, search, status);
}

function pager(page) {
  if (!page.has_more && !filter.after.length) return "";
  const turn = (after) => () => { filter.after = after; showTraces(); };
  return h("p", { className: "bar" },
    h("button", { type: "button", className: "plain", disabled: !filter.after.length, onclick: turn(filter.after.slice(0, -1)) }, "Newer"),
    h("button", { type: "button", className: "plain", disabled: !page.has_more, onclick: turn([...filter.after, page.last_id]) }, "Older"));
}

function row(one) {
  const facts = [one.model, one.usage ? count(one.usage.completion_tokens, "token") : null, seconds(one.timings.total_s), one.answer ? `“${one.answer}”` : null];
  return h("li", {}, h("a", { href: `#traces/${encodeURIComponent(one.id)}` },
    h("span", { className: "what" }, one.question || "(no question)"), when(one), h("span", { className: "how" }, tag(one.status), " ", facts.filter(Boolean).join(" · "))));
}

function when(one) {
  const date = new Date(one.created * 1000);
  return h("time", { dateTime: date.toISOString() }, date.toLocaleString(undefined, { dateStyle: "short", timeStyle: "short" }));
}

function tag(status) {
  const kind = status === "ok" ? "ok" : status === "error" ? "bad" : "";
  const words = { ok: "answered", truncated: "cut off", aborted: "stopped", error: "failed" };
  return h("span", { className: `tag ${kind}` }, words[status] ?? status);
}

function sheet(one) {
  const messages = one.request.messages ?? [];
  const back = h("a", { className: "plain", href: "#traces" }, icon("back"), " All traces");
  const gone = h("button", { type: "button", className: "plain", onclick: () => remove(one) }, icon("trash"), " Delete");
  const parts = [h("div", { className: "bar" }, back, gone)];
  for (const message of messages) parts.push(h("h2", {}, message.role), said(message.content ?? ""));
  if (one.consensus) parts.push(votes(one.consensus));
  for (const choice of one.choices) parts.push(...outcome(choice, one.choices.length));
  if (one.error) parts.push(h("p", { className: "note error" }, icon("warning"), one.error));
  parts.push(h("h2", {}, "About"), h("dl", { className: "facts" }, facts(one)));
  return [h("article", { className: "sheet" }, parts)];
}

const said = (content) => h("div", { className: "said" }, typeof content === "string" ? content : content.map((part) => part.text).join(""));

function outcome(choice, of) {
  const parts = of > 1 ? [h("h2", {}, `answer ${choice.index + 1} of ${of}`)] : [];
  if (choice.reasoning) {
    parts.push(h("details", { className: "thought" },
      h("summary", {}, icon("thought"), "Thought", chevron()), h("pre", { tabIndex: 0, role: "region", "aria-label": "Thought" }, choice.reasoning)));
  }
  if (choice.answer) {
    const prose = h("div", { className: "prose" });
    render(prose, choice.answer);
    parts.push(prose);
  }
  return parts;
}

function facts(one) {
  const { usage, timings } = one;
  const asked = Object.entries(one.request).filter(([key]) => !["messages", "model", "stream", "stream_options"].includes(key));
  const rows = [
    ["Status", tag(one.status)], ["When", when(one)], ["Key", one.key], ["Model", one.model], ["Files", one.digest], ["Gate", one.gate],
    ["Tokens", usage ? `${usage.prompt_tokens} asked, ${usage.completion_tokens_details.reasoning_tokens} thought, ${usage.completion_tokens - usage.completion_tokens_details.reasoning_tokens} answered` : null],
    ["Time", `${seconds(timings.total_s)}${timings.first_token_s === null ? "" : `, first token after ${seconds(timings.first_token_s)}`}`],
    ["Ended by", one.choices.map((choice) => choice.finish_reason).filter(Boolean).join(", ")],
    ["Asked with", asked.map(([key, value]) => `${key} ${JSON.stringify(value)}`).join(", ")], ["Request", one.id],
  ];
  return rows.filter(([, value]) => value).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]);
}

async function remove(one) {
  try {
    await deleteTrace(one.id);
  } catch (error) {
    toast(error.message);
    return;
  }
  toast("Trace deleted.");
  location.hash = "#traces";
}

function problem(error) {
  if (error.code === "traces_off") {
    return h("div", { className: "empty" }, h("p", {}, "This server keeps no traces."), h("p", {}, "Start it with ", h("code", {}, "--traces traces.db"), " to keep questions, thoughts and answers here."));
  }
  const key = error.status === 401 ? h("button", { type: "button", className: "plain", onclick: () => openSettings("key") }, "Enter an API key") : null;
  return h("div", { className: "empty" }, h("p", {}, error.message), key);
}
