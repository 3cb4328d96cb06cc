// The openai package for Node, unmodified, against the gateways named by BASE_URL and, failing, by BROKEN_URL.
import assert from "node:assert/strict";
import OpenAI, { toFile } from "openai";

const clientOf = (baseURL) => new OpenAI({ baseURL, apiKey: "unused", maxRetries: 0 });
const { transcriptions, translations } = clientOf(process.env.BASE_URL).audio;
const broken = clientOf(process.env.BROKEN_URL).audio;

const text = "And so, my fellow Americans, ask not what your country can do for you.";
const file = await toFile(Buffer.from("RIFF"), "a.wav");
const whisper = { model: "whisper-1", file };

const plain = await transcriptions.create(whisper);
assert.equal(plain.text, text);
assert.deepEqual(plain.usage, { type: "duration", seconds: 11 });

const likely = await transcriptions.create({ model: "gpt-4o-transcribe", file, include: ["logprobs"] });
assert.equal(likely.logprobs.length, 14);
assert.deepEqual(likely.logprobs[0], { token: " And", bytes: [32, 65, 110, 100], logprob: 0 });
assert.equal(likely.usage.total_tokens, 572);

const verbose = await transcriptions.create({
  ...whisper,
  response_format: "verbose_json",
  timestamp_granularities: ["word", "segment"],
  chunking_strategy: { type: "server_vad", threshold: 0.25 },
  keywords: ["Ada", "Grace"],
});
assert.deepEqual([verbose.text, verbose.language, verbose.duration], [text, "english", 11]);
assert.deepEqual([verbose.words.length, verbose.segments.length], [14, 2]);

for (const endpoint of [transcriptions, translations]) {
  assert.match(await endpoint.create({ ...whisper, response_format: "srt" }), /^1\n00:00:00,000 --> 00:00:03,300\nAnd so/);
  assert.match(await endpoint.create({ ...whisper, response_format: "vtt" }), /^WEBVTT\n\n00:00:00\.000 --> /);
  assert.equal(await endpoint.create({ ...whisper, response_format: "text" }), `${text}\n`);
}

assert.equal((await translations.create(whisper)).text, text);
assert.equal((await translations.create({ ...whisper, response_format: "verbose_json" })).language, "english");
await assert.rejects(broken.translations.create(whisper), OpenAI.BadRequestError);

const eventsOf = async (endpoint, events) => {
  for await (const event of await endpoint.create({ ...whisper, stream: true })) events.push(event);
};
const events = [];
await eventsOf(transcriptions, events);
const done = events.pop();
assert.equal(done.type, "transcript.text.done");
assert.equal(done.text, text);
assert.equal(events.map((event) => event.delta).join(""), text);
assert.equal(done.usage.output_tokens, 19);

const before = [];
await assert.rejects(eventsOf(broken.transcriptions, before), (error) => {
  assert.ok(error instanceof OpenAI.APIError);
  assert.equal(error.code, "engine_failed");
  return true;
});
assert.equal(before.length, 1);

await assert.rejects(transcriptions.create({ ...whisper, timestamp_granularities: ["word"] }), (error) => {
  assert.equal(error.param, "timestamp_granularities");
  return true;
});
