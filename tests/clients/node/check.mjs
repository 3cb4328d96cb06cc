// The openai package for Node, unmodified, against the gateway named by BASE_URL. Exits with 0 if all is well.
import assert from "node:assert/strict";
import OpenAI, { toFile } from "openai";

const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: "unused", maxRetries: 0 });
const messages = [{ role: "user", content: "What is the capital of France?" }];
const chat = { model: "gpt-4o-mini", messages, temperature: 0 };

const whole = await client.chat.completions.create(chat);
assert.match(whole.choices[0].message.content, /Paris/);
assert.equal(whole.choices[0].finish_reason, "stop");
assert.equal(whole.usage.total_tokens, whole.usage.prompt_tokens + whole.usage.completion_tokens);

const stream = await client.chat.completions.create({ ...chat, stream: true, stream_options: { include_usage: true } });
let text = "";
let usage = null;
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(text, whole.choices[0].message.content);
// The second time the prompt is in the prefix cache.
assert.ok(usage.prompt_tokens_details.cached_tokens > 0);
assert.deepEqual({ ...usage, prompt_tokens_details: null }, { ...whole.usage, prompt_tokens_details: null });

const runner = client.chat.completions.stream(chat);
assert.equal((await runner.finalChatCompletion()).choices[0].message.content, text);

const embeddings = await client.embeddings.create({ model: "text-embedding-3-small", input: ["a cat", "a dog"] });
assert.equal(embeddings.data.length, 2);
assert.equal(embeddings.data[1].embedding.length, 384);
assert.ok(Math.abs(Math.hypot(...embeddings.data[0].embedding) - 1) < 1e-3);

const speech = await client.audio.speech.create({ model: "tts-1", voice: "alloy", input: "The weather is fine today." });
const file = await toFile(Buffer.from(await speech.arrayBuffer()), "speech.mp3");
const heard = await client.audio.transcriptions.create({ model: "whisper-1", file });
assert.match(heard.text, /weather is fine today/i);

const long = { model: "tts-1", voice: "alloy", input: "The weather is fine today. ".repeat(4), response_format: "pcm" };
const [streamed, gathered] = [[], Buffer.from(await (await client.audio.speech.create(long)).arrayBuffer())];
for await (const chunk of (await client.audio.speech.create(long)).body) streamed.push(chunk);
assert.ok(streamed.length > 1);
assert.ok(Buffer.concat(streamed).equals(gathered));

const names = [];
for await (const model of client.models.list()) names.push(model.id);
assert.equal(names.length, 4);

await assert.rejects(client.chat.completions.create({ ...chat, model: "gpt-17" }), (error) => {
  assert.ok(error instanceof OpenAI.NotFoundError);
  assert.equal(error.code, "model_not_found");
  assert.ok(error.requestID);
  return true;
});
await assert.rejects(client.chat.completions.create({ ...chat, n: 129 }), (error) => {
  assert.ok(error instanceof OpenAI.BadRequestError);
  assert.equal(error.param, "n");
  return true;
});

const controller = new AbortController();
const aborted = await client.chat.completions.create({ ...chat, stream: true }, { signal: controller.signal });
for await (const chunk of aborted) {
  if (chunk.choices[0]?.delta?.content) controller.abort();
}
