// Ask with the AI SDK (https://ai-sdk.dev). The thought comes as reasoning, never as text.
//
//   node ask.js "8+7-6+9-3"
//   node ask.js --stream "8+7-6+9-3"
//
// THINKGATE_URL (default http://127.0.0.1:8000/v1) and THINKGATE_API_KEY say whom to ask.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";

const baseURL = process.env.THINKGATE_URL ?? "http://127.0.0.1:8000/v1";
const apiKey = process.env.THINKGATE_API_KEY;
const headers = apiKey ? { Authorization: `Bearer ${apiKey}` } : {};

const { data: models } = await (await fetch(`${baseURL}/models`, { headers })).json();
const thinkgate = createOpenAICompatible({
  name: "thinkgate",
  baseURL,
  apiKey,
  includeUsage: true,
});

const words = process.argv.slice(2);
const streamed = words[0] === "--stream";
const request = {
  model: thinkgate(models[0].id),
  prompt: words.slice(streamed ? 1 : 0).join(" "),
  temperature: 0,
};

function shown(usage) {
  const { reasoningTokens, textTokens } = usage.outputTokenDetails;
  return `tokens: ${reasoningTokens} reasoning, ${textTokens} answer`;
}

if (streamed) {
  const result = streamText({ ...request, onError: ({ error }) => { throw error; } });
  for await (const part of result.fullStream) {
    if (part.type === "reasoning-start") process.stdout.write("reasoning: ");
    if (part.type === "reasoning-delta") process.stdout.write(part.text);
    if (part.type === "reasoning-end") process.stdout.write("\n");
    if (part.type === "text-start") process.stdout.write("answer: ");
    if (part.type === "text-delta") process.stdout.write(part.text);
    if (part.type === "text-end") process.stdout.write("\n");
  }
  console.log(shown(await result.usage));
} else {
  const { reasoningText, text, usage } = await generateText(request);
  if (reasoningText !== undefined) console.log(`reasoning: ${reasoningText}`);
  console.log(`answer: ${text}`);
  console.log(shown(usage));
}
