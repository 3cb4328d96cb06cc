"""A cross-encoder of MiniLM's size against a plain loop over transformers: random weights, documents of mixed length.

    python -m tests.perf.rerank_load
    python -m tests.perf.rerank_load --layers 12 --documents 200

The loop is what model cards show: batches of 32 in the order given, padded to their longest, without gradients, in the
same number format and with as many threads, tokenizing included. Ours is the handler, with its batch loop and its
worker thread. Both run in turn, and the best of some runs counts.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from batching.job import Caller
from handlers.rerank.handler import RerankerHandler
from handlers.rerank.types import RerankRequest
from handlers.spec import ModelSpec, Task
from handlers.starter import EMBEDDINGS
from tests.handlers.tiny import WORDS, save_cross_encoder

LENGTHS = (8, 16, 32, 64, 128, 240)
BATCH = 32
QUERY = "the red cat sat on one blue mat"


def save_model(folder: Path, layers: int) -> None:
    """As large as MiniLM-L6 or L12, its vocabulary included."""
    sizes: dict[str, Any] = {
        "vocab_size": 30_522,
        "hidden_size": 384,
        "num_hidden_layers": layers,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
        "max_position_embeddings": 512,
        "num_labels": 1,
    }
    save_cross_encoder(folder, BertForSequenceClassification(BertConfig(**sizes)))


def mixed(count: int) -> list[str]:
    """Documents of every length in turn, in an order of chance."""
    chance = random.Random(0)
    documents = [" ".join(chance.choices(WORDS[4:], k=LENGTHS[i % len(LENGTHS)])) for i in range(count)]
    chance.shuffle(documents)
    return documents


def plain_loop(folder: Path, dtype: torch.dtype) -> Callable[[list[str]], list[float]]:
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype).eval()

    @torch.no_grad()
    def logits(documents: list[str]) -> list[float]:
        found: list[float] = []
        for start in range(0, len(documents), BATCH):
            batch = documents[start : start + BATCH]
            inputs = tokenizer([QUERY] * len(batch), batch, padding=True, return_tensors="pt")
            found += model(**inputs).logits[:, 0].float().tolist()
        return found

    return logits


async def seconds(call: Callable[[], Awaitable[object]]) -> float:
    started = time.perf_counter()
    await call()
    return time.perf_counter() - started


async def compare(folder: Path, documents: list[str], dtype: str, times: int) -> None:
    spec = ModelSpec("reranker", Task.RERANK, "dir:x", dtype=dtype, limits=EMBEDDINGS.limits)
    handler = RerankerHandler(spec, lambda source: folder)
    loop = plain_loop(folder, getattr(torch, dtype))

    async def theirs() -> list[float]:
        return loop(documents)

    async def ours() -> list[float]:
        relevance = await handler.rerank(RerankRequest(QUERY, documents), Caller())
        return [float(logit) for logit in relevance.raw]

    await handler.load()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(handler.run)
        difference = float(np.abs(np.array(await theirs()) - np.array(await ours())).max())
        pairs = [(await seconds(theirs), await seconds(ours)) for _ in range(times)]
        tasks.cancel_scope.cancel()
    slow, fast = (min(side) for side in zip(*pairs, strict=True))
    count = len(documents)
    print(  # noqa: T201 - the figures are this script's output
        f"{count} documents in {dtype}, {torch.get_num_threads()} threads, logits at most {difference:.1e} apart\n"
        f"transformers  {slow:6.2f} s  {count / slow:6.1f} documents/s\n"
        f"ours          {fast:6.2f} s  {count / fast:6.1f} documents/s\n"
        f"ratio         {slow / fast:6.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6, help="layers of the model (6)")
    parser.add_argument("--documents", type=int, default=100, help="documents of the request (100)")
    parser.add_argument("--times", type=int, default=3, help="runs of each (3)")
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16 (float32)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), options.layers)
        anyio.run(compare, Path(folder), mixed(options.documents), options.dtype, options.times)


if __name__ == "__main__":
    main()
