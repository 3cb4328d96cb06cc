"""What rounded weights cost: how far a model's next-token distributions are from those in float32.

    python -m tests.perf.chat_quality MODEL_FOLDER
    python -m tests.perf.chat_quality MODEL_FOLDER --dtype bfloat16

Over the opening of A Tale of Two Cities, both as a prompt and token by token: the two are computed in different ways.
A default passes with a mean KL divergence of at most 0.02 and the same likeliest token in at least 95 % of the places.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from handlers.chat.kv_cache import KVCache
from handlers.chat.loading import ChatModel, load
from handlers.chat.packed import Chunk, DecodeGroup, PackedBatch, PackedModel
from handlers.spec import ModelSpec, Task

OPENING = """It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of
foolishness, it was the epoch of belief, it was the epoch of incredulity, it was the season of Light, it was the season
of Darkness, it was the spring of hope, it was the winter of despair, we had everything before us, we had nothing before
us, we were all going direct to Heaven, we were all going direct the other way – in short, the period was so far like
the present period, that some of its noisiest authorities insisted on its being received, for good or for evil, in the
superlative degree of comparison only. There were a king with a large jaw and a queen with a plain face, on the throne
of England; there were a king with a large jaw and a queen with a fair face, on the throne of France. In both countries
it was clearer than crystal to the lords of the State preserves of loaves and fishes, that things in general were
settled for ever.""".replace("\n", " ")


@dataclass(frozen=True, slots=True)
class Distance:
    """divergence: mean KL from the reference, nats. agreement: share of places with the same likeliest token."""

    divergence: float
    agreement: float

    @property
    def passes(self) -> bool:
        return self.divergence <= 0.02 and self.agreement >= 0.95


def load_as(folder: Path, dtype: str) -> ChatModel:
    return load(ModelSpec("measured", Task.CHAT, f"dir:{folder}", dtype=dtype, device="cpu"), folder)


@torch.inference_mode()
def logits_of_prompt(model: PackedModel, token_ids: list[int]) -> torch.Tensor:
    """[tokens, vocab size]: what follows each of them, computed at once."""
    states = model.kv_shape.empty(1, len(token_ids))[:, :, 0]
    everywhere = torch.arange(len(token_ids))
    chunk = Chunk(states, 0, len(token_ids), 0)
    return model.forward(PackedBatch(torch.tensor(token_ids), everywhere, everywhere, [], [chunk])).float()


@torch.inference_mode()
def logits_of_steps(model: PackedModel, token_ids: list[int]) -> torch.Tensor:
    """As `logits_of_prompt`, but each token after the first is a step of its own."""
    states = model.kv_shape.empty(1, 1)[:, :, 0]
    zero = torch.zeros(1, dtype=torch.long)
    first = PackedBatch(torch.tensor(token_ids[:1]), zero, zero, [], [Chunk(states, 0, 1, 0)])
    logits = [model.forward(first)]
    cache = KVCache(model.kv_shape)
    cache.add(0, states)
    for length, token in enumerate(token_ids[1:], 1):
        cache.reserve(0, length)
        (bucket,) = cache
        before = torch.tensor([length])
        group = DecodeGroup(bucket, 0, before, length + 1, zero)
        logits.append(model.forward(PackedBatch(torch.tensor([token]), before, zero, [group], [])))
    return torch.cat(logits).float()


def distance(logits: torch.Tensor, reference: torch.Tensor) -> Distance:
    expected, given = reference.log_softmax(-1), logits.log_softmax(-1)
    divergence = (expected.exp() * (expected - given)).sum(-1).mean()
    agreement = (expected.argmax(-1) == given.argmax(-1)).float().mean()
    return Distance(float(divergence), float(agreement))


def distances(folder: Path, dtype: str) -> tuple[Distance, Distance]:
    """Of the prompt and of the steps."""
    reference = load_as(folder, "float32")
    token_ids = reference.tokenizer.encode(OPENING, add_special_tokens=False).ids
    expected = logits_of_prompt(reference.model, token_ids)
    del reference
    model = load_as(folder, dtype).model
    return (
        distance(logits_of_prompt(model, token_ids), expected),
        distance(logits_of_steps(model, token_ids), expected),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a model in the format of transformers")
    parser.add_argument("--dtype", default="auto", help="auto, bfloat16 or float16 (auto)")
    options = parser.parse_args()
    for name, found in zip(("prompt", "steps"), distances(options.folder, options.dtype), strict=True):
        print(  # noqa: T201 - the figures are this script's output
            f"{name:<7} mean KL {found.divergence:.4f}  same token {found.agreement:.1%}  "
            f"{'passes' if found.passes else 'FAILS'}"
        )


if __name__ == "__main__":
    main()
