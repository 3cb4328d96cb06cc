"""Two promises about waiting: a shared prefix is computed once, and a long prompt does not stall running answers.

    python -m tests.perf.chat_latency --url http://127.0.0.1:8000/v1

prefix: time to the first token of a prompt of about 1,000 tokens, and of another that only ends otherwise.
stalls: time between the tokens of running streams, undisturbed and while a prompt of about 4,000 tokens enters.
"""

import argparse
import asyncio
import statistics
import time
import uuid

from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam

SENTENCE = "The harbour master counted the ships at noon and wrote their names down. "
TOKENS_A_SENTENCE = 16


def prompt(tokens: int, ending: str) -> list[ChatCompletionMessageParam]:
    """A beginning that no earlier run can have left in the cache, unless it is this one's."""
    return [{"role": "user", "content": SENTENCE * (tokens // TOKENS_A_SENTENCE) + ending}]


async def first_token(client: AsyncOpenAI, model: str, messages: list[ChatCompletionMessageParam], salt: str) -> float:
    started = time.perf_counter()
    stream = await client.chat.completions.create(
        model=model, messages=messages, max_tokens=2, temperature=0, stream=True, extra_body={"cache_salt": salt}
    )
    async with stream:
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                return time.perf_counter() - started
    raise RuntimeError("the answer had no text")


async def gaps(client: AsyncOpenAI, model: str, number: int, tokens: int) -> list[float]:
    """Seconds between the chunks of one stream, of which the first is left out."""
    stream = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": f"Count to {number + 100}."}],
        max_tokens=tokens,
        stream=True,
        temperature=0,
        extra_body={"ignore_eos": True},
    )
    times = []
    async with stream:
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                times.append(time.perf_counter())
    return [later - earlier for earlier, later in zip(times, times[1:], strict=False)]


async def measure_prefix(client: AsyncOpenAI, model: str, runs: int) -> None:
    first, second = [], []
    for _ in range(runs):
        salt = uuid.uuid4().hex
        first.append(await first_token(client, model, prompt(1000, "What was counted?"), salt))
        second.append(await first_token(client, model, prompt(1000, "Who counted?"), salt))
    before, after = statistics.median(first), statistics.median(second)
    print(f"prefix  first {before * 1e3:.0f} ms  second {after * 1e3:.0f} ms  {after / before:.1%}")  # noqa: T201


async def measure_stalls(client: AsyncOpenAI, model: str, streams: int, tokens: int) -> None:
    calm = await _all_gaps(client, model, streams, tokens)
    long_prompt = asyncio.create_task(_later(client, model))
    disturbed = await _all_gaps(client, model, streams, tokens)
    entered = await long_prompt
    for name, seconds in (("calm", calm), ("disturbed", disturbed)):
        seconds.sort()
        p50, p99 = seconds[len(seconds) // 2], seconds[int(len(seconds) * 0.99)]
        print(f"stalls  {name:<10} p50 {p50 * 1e3:.1f} ms  p99 {p99 * 1e3:.1f} ms")  # noqa: T201
    ratio = disturbed[int(len(disturbed) * 0.99)] / calm[int(len(calm) * 0.99)]
    print(f"stalls  p99 {ratio:.1f} times the calm one; the long prompt's first token after {entered:.1f} s")  # noqa: T201


async def _later(client: AsyncOpenAI, model: str) -> float:
    await asyncio.sleep(2)
    return await first_token(client, model, prompt(4000, "What happened at noon?"), uuid.uuid4().hex)


async def _all_gaps(client: AsyncOpenAI, model: str, streams: int, tokens: int) -> list[float]:
    found = await asyncio.gather(*(gaps(client, model, i, tokens) for i in range(streams)))
    return [seconds for stream in found for seconds in stream]


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", default="gpt-4o-mini")
    parser.add_argument("--streams", type=int, default=4, help="answers that run meanwhile (4)")
    parser.add_argument("--tokens", type=int, default=300, help="of each answer (300)")
    parser.add_argument("--runs", type=int, default=5, help="pairs of prompts (5)")
    options = parser.parse_args()
    async with AsyncOpenAI(base_url=options.url, api_key="none") as client:
        await measure_prefix(client, options.model, options.runs)
        await measure_stalls(client, options.model, options.streams, options.tokens)


if __name__ == "__main__":
    asyncio.run(main())
