// The openai package for Node, unmodified, against the gateway named by BASE_URL: the reading in the file READING, of
// more than one window, as words and as a stream, and speech that goes to a file while it is made.
import assert from "node:assert/strict";
import { createReadStream, createWriteStream } from "node:fs";
import { stat } from "node:fs/promises";
import { pipeline } from "node:stream/promises";
import OpenAI from "openai";

const { transcriptions, speech } = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: "unused", maxRetries: 0 }).audio;
const whisper = () => ({ model: "whisper-1", file: createReadStream(process.env.READING) });
const squeezed = (text) => text.replace(/\s/g, "");

const verbose = await transcriptions.create({
  ...whisper(),
  response_format: "verbose_json",
  timestamp_granularities: ["word", "segment"],
});
const { words, segments } = verbose;
assert.equal(squeezed(words.map(({ word }) => word).join("")), squeezed(verbose.text));
assert.ok(words.every(({ start, end }, i) => start <= end && (i === 0 || words[i - 1].end <= start)));
for (const { start, end, text } of segments) {
  const inside = words.filter((word) => start <= word.start && word.end <= end);
  assert.equal(squeezed(inside.map(({ word }) => word).join("")), squeezed(text));
}
assert.ok(new Set(segments.map(({ seek }) => seek)).size > 1);

const deltas = [];
let done = null;
for await (const event of await transcriptions.create({ ...whisper(), stream: true })) {
  if (event.type === "transcript.text.delta") deltas.push(event.delta);
  else done = event;
}
assert.ok(deltas.length > 2);
assert.equal(done.type, "transcript.text.done");
assert.equal(deltas.join(""), done.text);
assert.equal((await transcriptions.create(whisper())).text, done.text);

const input = "The weather is fine today. Thank you for calling. Please close the window.";
const answer = await speech.create({ model: "tts-1", voice: "alloy", input, response_format: "flac" });
const pieces = [];
const counted = async function* (body) {
  for await (const piece of body) {
    pieces.push(piece.length);
    yield piece;
  }
};
await pipeline(answer.body, counted, createWriteStream("speech.flac"));
assert.ok(pieces.length > 1);
assert.equal((await stat("speech.flac")).size, pieces.reduce((sum, length) => sum + length));
const heard = await transcriptions.create({ model: "whisper-1", file: createReadStream("speech.flac") });
assert.match(heard.text, /weather is fine today.*thank you for calling.*close the window/i);
