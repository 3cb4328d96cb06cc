"""The chat engine alone: step time by batch size, beside what the machine could do at best.

    python -m tests.perf.chat_engine MODEL_FOLDER
    python -m tests.perf.chat_engine MODEL_FOLDER --rows 1 8 --context 512 --dtype bfloat16

The limit is the larger of two times: to read every weight once, in the size it is read in, and to multiply it for every
row, at the bandwidth and the GEMM rate that this machine shows in a moment of its own.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from batching.generation import Joining
from handlers.chat.engine import Prompt, StepwiseEngine
from handlers.chat.loading import load
from handlers.chat.types import Sampling
from handlers.spec import ModelSpec, Task

GREEDY = Sampling(temperature=0, ignore_eos=True)


def best_seconds(call: Callable[[], object], times: int = 5) -> float:
    """The shortest of some runs, after one to warm up."""
    call()
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def bytes_per_second(dtype: torch.dtype) -> float:
    """Reading memory that no cache holds."""
    memory = torch.ones(256 * 1024 * 1024 // dtype.itemsize, dtype=dtype)
    return memory.nbytes / best_seconds(memory.sum)


def flops_per_second(dtype: torch.dtype) -> float:
    left, right = torch.ones(512, 2048, dtype=dtype), torch.ones(2048, 2048, dtype=dtype)
    return 2 * 512 * 2048 * 2048 / best_seconds(lambda: left @ right)


def decode_seconds(engine: StepwiseEngine, rows: int, context: int, steps: int) -> float:
    """Median seconds of a step in which so many rows of so many tokens generate."""
    engine.reset()
    prompts = [Prompt([7 + row] * context, 1_000_000, GREEDY) for row in range(rows)]
    running = len(engine.step([Joining(i, prompt, ()) for i, prompt in enumerate(prompts)], []))
    while running < rows:
        running = len(engine.step([], []))
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        engine.step([], [])
        seconds.append(time.perf_counter() - started)
    engine.reset()
    return statistics.median(seconds)


def prefill_seconds(engine: StepwiseEngine, tokens: int) -> float:
    def prefill() -> None:
        outputs = engine.step([Joining(0, Prompt([7] * tokens, 2, GREEDY), ())], [])
        while not outputs:
            outputs = engine.step([], [])
        engine.reset()

    return best_seconds(prefill, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a model in the format of transformers")
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 4, 16, 32], help="batch sizes (1 4 16 32)")
    parser.add_argument("--prompts", type=int, nargs="*", default=[97, 256, 1024], help="prompt lengths (97 256 1024)")
    parser.add_argument("--context", type=int, default=128, help="tokens of a row before it generates (128)")
    parser.add_argument("--steps", type=int, default=20, help="steps to take the median of (20)")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    options = parser.parse_args()
    spec = ModelSpec("measured", Task.CHAT, f"dir:{options.folder}", dtype=options.dtype, device=options.device)
    model = load(spec, options.folder).model
    engine = StepwiseEngine(model, [])
    size, dtype = model.parameters, model.kv_shape.dtype
    bandwidth, rate = bytes_per_second(dtype), flops_per_second(dtype)
    print(f"{size / 1e6:.0f} M weights in {dtype}, {bandwidth / 1e9:.1f} GB/s, {rate / 1e9:.0f} GFLOP/s")  # noqa: T201
    for rows in options.rows:
        seconds = decode_seconds(engine, rows, options.context, options.steps)
        bytes_a_weight = 1 if rows <= model.int8_rows else dtype.itemsize
        limit = max(size * bytes_a_weight / bandwidth, 2 * size * rows / rate)
        print(  # noqa: T201
            f"decode  {rows:>5} rows    {seconds * 1e3:8.1f} ms a step  {rows / seconds:7.0f} tok/s  "
            f"limit {limit * 1e3:6.1f} ms  {limit / seconds:4.0%}"
        )
    for tokens in options.prompts:
        seconds = prefill_seconds(engine, tokens)
        limit = 2 * size * tokens / rate
        print(  # noqa: T201
            f"prefill {tokens:>5} tokens  {seconds * 1e3:8.1f} ms          {tokens / seconds:7.0f} tok/s  "
            f"limit {limit * 1e3:6.1f} ms  {limit / seconds:4.0%}"
        )


if __name__ == "__main__":
    main()
