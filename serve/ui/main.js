// The page: which conversation is shown, and asking, stopping, repeating in it.

import { chat, models } from "./api.js";
import { showBadge } from "./card.js";
import { announce, byId, h, iconButton, toast } from "./dom.js";
import { connectSettings, openSettings, showDefaults } from "./options.js";
import { sampling, settings } from "./settings.js";
import * as store from "./store.js";
import { Answer, question } from "./thread.js";
import { showTraces } from "./traces.js";

const SAVE_EVERY = 1000; // ms, while an answer is made
const EXAMPLES = ["8+7-6+9-3", "A train covers 180 km in 2.5 hours. How fast is it on average?", "Is 391 a prime number?"];

const scroll = byId("scroll");
const thread = byId("thread");
const box = byId("question");

let all = []; // every conversation
let current = fresh();
let served = []; // models
let run; // the answer being made: { abort, conversation }

function fresh() {
  return { id: crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`, title: "", created: Date.now(), updated: 0, turns: [] };
}

// ---- Asking

function ask(text) {
  current.title ||= text.replace(/\s+/g, " ").slice(0, 80);
  current.turns.push({ role: "user", text });
  if (!all.includes(current)) all.unshift(current);
  answer();
}

/** Ask again from the question before turn `index`. */
function repeat(index) {
  if (run) return;
  current.turns.length = index;
  answer();
}

function edit(index, text) {
  if (run) return;
  current.turns.length = index;
  ask(text);
}

async function answer() {
  const conversation = current;
  const turn = { role: "assistant", reasoning: "", answer: "", state: "waiting" };
  const messages = context(conversation.turns);
  conversation.turns.push(turn);
  run = { abort: new AbortController(), conversation };
  showConversation();
  history.replaceState(null, "", `#c/${conversation.id}`);
  toEnd();
  const view = lastView;
  const begun = performance.now();
  const body = { messages, ...sampling() };
  if (served.length > 1) body.model = byId("model").value;
  const clock = setInterval(() => tick(turn, view, begun), 100);
  const saving = setInterval(() => store.save(conversation), SAVE_EVERY);
  announce("Asked");
  try {
    for await (const event of chat(body, run.abort.signal)) take(turn, event, begun);
    turn.state = "done";
  } catch (error) {
    fail(turn, error);
  }
  clearInterval(clock);
  clearInterval(saving);
  run = undefined;
  if (turn.thinkSeconds === undefined && turn.thinkFrom !== undefined) turn.thinkSeconds = since(begun) - turn.thinkFrom;
  turn.seconds = since(begun);
  view.update(true);
  showButtons();
  if (conversation === current) follow();
  announce(spoken(turn));
  await store.save(conversation);
  showList();
}

function take(turn, event, begun) {
  if (event.reasoning !== undefined) {
    turn.reasoning += event.reasoning;
    turn.thinkFrom ??= since(begun);
    if (turn.state === "waiting" && event.reasoning) {
      turn.state = "thinking";
      announce("Thinking");
    }
  }
  if (event.answer !== undefined) {
    if (turn.state !== "answering") {
      if (turn.thinkFrom !== undefined) turn.thinkSeconds = since(begun) - turn.thinkFrom;
      turn.state = "answering";
      announce("Answering");
    }
    turn.answer += event.answer;
  }
  if (event.finished) Object.assign(turn, event.finished);
}

function fail(turn, error) {
  if (error.name === "AbortError") {
    turn.state = "stopped";
  } else {
    turn.state = "failed";
    turn.error = error.message;
    turn.status = error.status;
  }
}

/** Ten times a second: the clock of the thought, and the text that came since. */
function tick(turn, view, begun) {
  if (turn.state === "thinking") turn.thinkSeconds = since(begun) - turn.thinkFrom;
  view.update();
  follow();
  if (turn.state === "thinking") turn.thinkSeconds = undefined;
}

function stop() {
  run?.abort.abort();
}

const since = (begun) => (performance.now() - begun) / 1000;

/** What the model is told: answered questions, answers without their thoughts, and the new one. */
function context(turns) {
  const messages = settings.system ? [{ role: "system", content: settings.system }] : [];
  turns.forEach((turn, index) => {
    const reply = turns[index + 1];
    if (turn.role !== "user" || (reply && !reply.answer)) return;
    messages.push({ role: "user", content: turn.text });
    if (reply) messages.push({ role: "assistant", content: reply.answer });
  });
  return messages;
}

function spoken(turn) {
  if (turn.state === "stopped") return "Stopped";
  if (turn.state === "failed") return ""; // its alert is read
  return turn.answer ? `Answer: ${turn.answer.slice(0, 600)}` : "No answer";
}

// ---- Showing

let lastView;

function showConversation() {
  thread.replaceChildren(...current.turns.map((turn, index) => {
    if (turn.role === "user") return question(turn, (text) => edit(index, text));
    lastView = new Answer(turn, { onagain: () => repeat(index), onkey: () => openSettings("key") });
    return lastView.element;
  }));
  byId("welcome").hidden = current.turns.length > 0;
  const title = current.title || "New chat";
  byId("title").textContent = title;
  document.title = current.title ? `${title} · thinkgate` : "thinkgate";
  showButtons();
  showList();
}

function showButtons() {
  const running = run !== undefined;
  const hadFocus = document.activeElement === byId("stop");
  byId("stop").hidden = !running;
  byId("send").hidden = running;
  byId("send").disabled = !box.value.trim();
  if (hadFocus && !running) box.focus();
}

function showList() {
  const groups = [["Today", 0], ["Yesterday", 1], ["Earlier", Infinity]];
  const midnight = new Date().setHours(0, 0, 0, 0);
  const age = (one) => Math.max(0, Math.ceil((midnight - (one.updated || Date.now())) / 86_400_000));
  let from = -1;
  const items = groups.flatMap(([name, until]) => {
    const found = all.filter((one) => age(one) > from && age(one) <= until);
    from = until;
    return found.length ? [h("li", { className: "group" }, name), ...found.map(entry)] : [];
  });
  byId("conversations").replaceChildren(...items);
}

function entry(conversation) {
  const here = conversation === current && !location.hash.startsWith("#traces");
  const title = conversation.title || "New chat";
  return h("li", {},
    h("a", { href: `#c/${conversation.id}`, title, "aria-current": here ? "page" : null }, title),
    iconButton("trash", `Delete ${title}`, () => remove(conversation)));
}

async function remove(conversation) {
  if (run?.conversation === conversation) stop();
  all = all.filter((one) => one !== conversation);
  await store.remove(conversation.id);
  if (conversation === current) start();
  else showList();
  byId("new").focus();
  toast("Conversation deleted.", "Undo", async () => {
    all.unshift(conversation);
    await store.save(conversation);
    location.hash = `#c/${conversation.id}`;
  });
}

/** A new, empty conversation. */
function start() {
  current = fresh();
  history.replaceState(null, "", "#");
  route();
  box.focus();
}

/** Show what the address names. */
function route() {
  const [view, id] = location.hash.slice(1).split("/");
  const traces = view === "traces";
  byId("traces").hidden = !traces;
  byId("chat").hidden = traces;
  if (traces) byId("to-traces").setAttribute("aria-current", "page");
  else byId("to-traces").removeAttribute("aria-current");
  closeMenu();
  if (traces) {
    byId("title").textContent = "Traces";
    document.title = "Traces · thinkgate";
    showList();
    showTraces(id && decodeURIComponent(id));
    return;
  }
  const named = view === "c" ? all.find((one) => one.id === id) : undefined;
  if (named && named !== current) current = named;
  else if (!named && current.turns.length) current = fresh();
  if (run && run.conversation !== current) stop();
  showConversation();
  if (current.turns.length) toEnd();
}

// ---- Scrolling: stays at the end unless the reader has scrolled away

let following = true;

scroll.addEventListener("scroll", () => {
  following = scroll.scrollTop + scroll.clientHeight > scroll.scrollHeight - 60;
  byId("to-end").hidden = following || !current.turns.length;
});

function follow() {
  if (following) scroll.scrollTop = scroll.scrollHeight;
}

function toEnd() {
  following = true;
  follow();
}

// ---- The menu on narrow screens

function openMenu() {
  byId("sidebar").classList.add("open");
  byId("scrim").hidden = false;
  byId("open-menu").setAttribute("aria-expanded", "true");
  byId("close-menu").focus();
}

function closeMenu() {
  if (byId("scrim").hidden) return;
  byId("sidebar").classList.remove("open");
  byId("scrim").hidden = true;
  byId("open-menu").setAttribute("aria-expanded", "false");
  byId("open-menu").focus();
}

// ---- Beginning

async function loadModels() {
  try {
    served = await models();
  } catch (error) {
    toast(error.message, error.status === 401 ? "Enter an API key" : "Try again", () => (error.status === 401 ? openSettings("key") : loadModels()));
    return;
  }
  const list = byId("model");
  list.replaceChildren(...served.map((model) => h("option", {}, model.id)));
  list.hidden = served.length < 2;
  showServed(served[0]);
}

function showServed(model) {
  showBadge(model);
  showDefaults(model.sampling_defaults);
}

function submit(event) {
  event?.preventDefault();
  const text = box.value.trim();
  if (!text || run) return;
  box.value = "";
  ask(text);
}

function connect() {
  byId("composer").addEventListener("submit", submit);
  box.addEventListener("input", showButtons);
  box.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) submit(event);
  });
  byId("stop").addEventListener("click", stop);
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
    if (!byId("scrim").hidden) closeMenu();
    else stop();
  });
  byId("new").addEventListener("click", () => (run ? stop() : undefined, start()));
  byId("model").addEventListener("change", (event) => showServed(served.find((one) => one.id === event.target.value)));
  byId("to-end").addEventListener("click", toEnd);
  byId("open-menu").addEventListener("click", openMenu);
  byId("close-menu").addEventListener("click", closeMenu);
  byId("scrim").addEventListener("click", closeMenu);
  byId("examples").append(...EXAMPLES.map((text) => h("button", { type: "button", onclick: () => ask(text) }, text)));
  addEventListener("hashchange", route);
  connectSettings({ onkey: loadModels, onforget: forget });
}

async function forget() {
  stop();
  all = [];
  await store.clear();
  start();
}

connect();
loadModels();
all = await store.conversations();
route();
if (!current.turns.length && matchMedia("(hover: hover)").matches) box.focus();
