// Talking to the server: requests, its event streams, and what went wrong in its own words.

import { apiKey } from "./settings.js";

export class ApiError extends Error {
  constructor(message, status, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** A request to this server; ApiError for every failure but an abort. */
async function send(path, options = {}) {
  const headers = { ...options.headers };
  if (apiKey()) headers.authorization = `Bearer ${apiKey()}`;
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer. Is it running?", 0);
  }
  if (!response.ok) throw await failure(response);
  return response;
}

async function failure(response) {
  const body = await response.json().catch(() => ({}));
  const error = body.error ?? {};
  const again = response.headers.get("retry-after");
  const said = (error.message ?? `The server answers ${response.status}`).replace(/\.?$/, ".");
  const words = response.status === 401 ? wantsKey() : again ? `${said} Try again in ${again} s.` : said;
  return new ApiError(words, response.status, error.code);
}

/** The server's own words are for programs: they name a header. */
const wantsKey = () => (apiKey() ? "This server does not accept the API key." : "This server asks for an API key.");

export async function models() {
  const listed = await (await send("v1/models")).json();
  return listed.data;
}

/** What lies at `path`, as a Blob. */
export async function file(path) {
  return (await send(path)).blob();
}

export async function traces(query) {
  return (await send(`v1/traces?${new URLSearchParams(query)}`)).json();
}

export async function trace(id) {
  return (await send(`v1/traces/${encodeURIComponent(id)}`)).json();
}

export async function deleteTrace(id) {
  await send(`v1/traces/${encodeURIComponent(id)}`, { method: "DELETE" });
}

/**
 * Ask, and yield `{ reasoning }`, `{ answer }`, and at last `{ finished }`: finish, truncated, usage,
 * consensus, requestId, model digest and gate. Aborting the signal aborts the generation.
 */
export async function* chat(body, signal) {
  const response = await send("v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  const finished = {
    requestId: response.headers.get("x-request-id"),
    digest: response.headers.get("x-thinkgate-model-digest"),
    gate: response.headers.get("x-thinkgate-gate"),
  };
  for await (const event of events(response)) {
    if (event.error) throw new ApiError(event.error.message, 200, event.error.code);
    if (event.usage) finished.usage = event.usage;
    if (event.consensus) finished.consensus = event.consensus;
    const choice = event.choices[0];
    if (!choice) continue;
    const reasoning = choice.delta.reasoning_content ?? choice.delta.reasoning;
    if (reasoning !== undefined && reasoning !== null) yield { reasoning };
    if (choice.delta.content) yield { answer: choice.delta.content };
    if (choice.finish_reason) {
      finished.finish = choice.finish_reason;
      finished.truncated = choice.reasoning_truncated;
    }
  }
  yield { finished };
}

/** The JSON of each server-sent event; ApiError when the stream breaks off. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await read(reader);
    if (done) throw new ApiError("The connection broke off before the answer was complete.", 0);
    const blocks = (held + value).split("\n\n");
    held = blocks.pop();
    for (const block of blocks) {
      const data = block.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      yield event;
      if (event.error) return;
    }
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    return { done: true };
  }
}
