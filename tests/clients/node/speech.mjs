// The openai package for Node, unmodified, against the gateways named by BASE_URL, by ENDLESS_URL, which makes no second
// chunk, and by BROKEN_URL, which fails at the second chunk.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { Stream } from "openai/streaming";

const [whole, endless, broken] = ["BASE_URL", "ENDLESS_URL", "BROKEN_URL"].map(
  (name) => new OpenAI({ baseURL: process.env[name], apiKey: "unused", maxRetries: 0 }).audio.speech,
);
const speak = { model: "tts-1", voice: "onyx", input: "Hello" };
const sse = { ...speak, stream_format: "sse" };
const decode = (chunks) => Buffer.concat(chunks).toString();

const plain = await whole.create(speak);
assert.equal(plain.headers.get("content-type"), "audio/mpeg");
const chunks = [];
const reader = plain.body.getReader();
for (let read = await reader.read(); !read.done; read = await reader.read()) chunks.push(read.value);
assert.equal(decode(chunks), "ID3audio");

const early = (await endless.create(speak)).body.getReader();
assert.equal(decode([(await early.read()).value]), "ID3");
await early.cancel();

const cut = (await broken.create(speak)).body.getReader();
assert.equal(decode([(await cut.read()).value]), "ID3");
await assert.rejects(cut.read(), "audio without its end is no whole audio");

const eventsOf = async (speech, events) => {
  const controller = new AbortController();
  const reply = await speech.create(sse, { signal: controller.signal });
  for await (const event of Stream.fromSSEResponse(reply, controller)) {
    events.push(event);
    if (speech === endless) break;
  }
};
const audioOf = (events) => decode(events.map((event) => Buffer.from(event.audio, "base64")));
const events = [];
await eventsOf(whole, events);
assert.deepEqual(events.pop(), {
  type: "speech.audio.done",
  usage: { input_tokens: 5, output_tokens: 30, total_tokens: 35 },
});
assert.ok(events.every((event) => event.type === "speech.audio.delta"));
assert.equal(audioOf(events), "ID3audio");

const first = [];
await eventsOf(endless, first);
assert.equal(audioOf(first), "ID3");

const before = [];
await assert.rejects(eventsOf(broken, before), (error) => {
  assert.ok(error instanceof OpenAI.APIError);
  assert.equal(error.code, "engine_failed");
  return true;
});
assert.equal(audioOf(before), "ID3");
