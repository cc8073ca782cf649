// Ask with nothing but fetch, streamed: what a web page does.
//
//   node plain.js "8+7-6+9-3"
//
// THINKGATE_URL (default http://127.0.0.1:8000/v1) and THINKGATE_API_KEY say whom to ask.
const baseURL = process.env.THINKGATE_URL ?? "http://127.0.0.1:8000/v1";
const apiKey = process.env.THINKGATE_API_KEY;

/** The events of a stream: each is one JSON object, and the last says "[DONE]". */
async function* events(response) {
  let held = "";
  for await (const text of response.body.pipeThrough(new TextDecoderStream())) {
    held += text;
    const blocks = held.split("\n\n");
    held = blocks.pop();
    for (const block of blocks) {
      // A block that starts with ":" is a sign of life and holds no data.
      if (!block.startsWith("data: ") || block === "data: [DONE]") continue;
      const event = JSON.parse(block.slice("data: ".length));
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

const response = await fetch(`${baseURL}/chat/completions`, {
  method: "POST",
  headers: {
    "Content-Type": "application/json",
    ...(apiKey ? { Authorization: `Bearer ${apiKey}` } : {}),
  },
  body: JSON.stringify({
    messages: [{ role: "user", content: process.argv.slice(2).join(" ") }],
    temperature: 0,
    stream: true,
    stream_options: { include_usage: true },
  }),
});
if (!response.ok) {
  const { error } = await response.json();
  throw new Error(`${response.status}: ${error.message}`);
}

const said = { reasoning_content: "", content: "" };
let usage;
for await (const { choices, usage: counted } of events(response)) {
  usage = counted ?? usage;
  for (const { delta } of choices) {
    said.reasoning_content += delta.reasoning_content ?? "";
    said.content += delta.content ?? "";
  }
}
console.log(`reasoning: ${said.reasoning_content}`);
console.log(`answer: ${said.content}`);
const reasoning = usage.completion_tokens_details.reasoning_tokens;
console.log(`tokens: ${reasoning} reasoning, ${usage.completion_tokens - reasoning} answer`);
