// The openai package for Node, unmodified, reading the streams in the folder GOLDEN: the model's name is the file's.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import path from "node:path";
import OpenAI from "openai";

const server = createServer(async (request, response) => {
  const pieces = [];
  for await (const piece of request) pieces.push(piece);
  const { model } = JSON.parse(Buffer.concat(pieces));
  response.writeHead(200, { "content-type": "text/event-stream" });
  response.end(await readFile(path.join(process.env.GOLDEN, `${model}.txt`)));
});
await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
const baseURL = `http://127.0.0.1:${server.address().port}/v1`;
const client = new OpenAI({ baseURL, apiKey: "unused", maxRetries: 0 });
const messages = [{ role: "user", content: "Hello" }];

const chunksOf = async (model, fields = {}) => {
  const chunks = [];
  for await (const chunk of await client.chat.completions.create({ model, messages, stream: true, ...fields })) {
    chunks.push(chunk);
  }
  return chunks;
};
const finalOf = (model, fields = {}) =>
  client.chat.completions.stream({ model, messages, ...fields }).finalChatCompletion();

for (const model of ["text", "usage"]) {
  const final = await finalOf(model);
  assert.equal(final.choices[0].message.content, 'Hello "wörld"\n');
  assert.equal(final.choices[0].finish_reason, "stop");
}
const usage = (await chunksOf("usage")).at(-1).usage;
assert.equal(usage.total_tokens, 13);
assert.equal(usage.prompt_tokens_details.cached_tokens, 8);

const called = (await finalOf("tool_calls")).choices[0];
assert.equal(called.finish_reason, "tool_calls");
assert.deepEqual(
  called.message.tool_calls.map((call) => [call.id, call.type, call.function.name, JSON.parse(call.function.arguments)]),
  [
    ["call_a", "function", "get_weather", { city: "Zürich" }],
    ["call_b", "function", "get_time", { zone: "CET" }],
  ],
);

const older = (await finalOf("function_call")).choices[0];
assert.equal(older.finish_reason, "function_call");
assert.deepEqual(older.message.function_call, { name: "get_weather", arguments: '{"city":"Zürich"}' });

const two = (await finalOf("two_answers", { n: 2 })).choices;
assert.deepEqual(two.map((choice) => choice.message.content), ["Yes! Sure", "No"]);

const { content } = (await finalOf("logprobs")).choices[0].logprobs;
assert.deepEqual(content.map((entry) => [entry.token, entry.logprob]), [["Hi", -0.5], [" ü", -2], ["!", -9999]]);
assert.deepEqual(content[1].bytes, [32, 195, 188]);

const thought = (await chunksOf("reasoning")).map((chunk) => chunk.choices[0]?.delta?.reasoning_content ?? "");
assert.equal(thought.join(""), "Hm. 4?");

await assert.rejects(chunksOf("error"), (error) => {
  assert.ok(error instanceof OpenAI.APIError);
  assert.equal(error.code, "engine_failed");
  return true;
});

const textsOf = async (model) => {
  const texts = {};
  for await (const chunk of await client.completions.create({ model, prompt: "Hi", stream: true })) {
    for (const choice of chunk.choices) texts[choice.index] = (texts[choice.index] ?? "") + choice.text;
  }
  return texts;
};
assert.deepEqual(await textsOf("completion"), { 0: "Yes! Sure", 1: "No" });
assert.deepEqual(await textsOf("completion_logprobs"), { 0: "Hi ü!" });
await assert.rejects(textsOf("completion_error"), OpenAI.APIError);

server.close();
