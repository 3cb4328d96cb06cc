"""The chat engine in tests: a model whose every token tells what it saw, a driver, and transformers as the judge."""

import copy
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from batching.generation import Joining
from handlers.chat.engine import Generated, Prompt, StepwiseEngine
from handlers.chat.general import ATTENTION, GeneralModel
from handlers.chat.kv_cache import KVShape
from handlers.chat.llama import LlamaConfig, LlamaModel
from handlers.chat.packed import PackedBatch, PackedModel
from handlers.chat.types import Sampling

CPU = torch.device("cpu")
GREEDY = Sampling(temperature=0)


class TellingModel:
    """A packed model whose next token is a hash of all the tokens before it, as they lie in the caches.

    Whatever goes wrong with a row's memory, its place or its positions gives other tokens. `poison`: a row that ends
    with this token gets logits that are not numbers.
    """

    def __init__(self, vocab_size: int = 97, poison: int | None = None) -> None:
        self.vocab_size = vocab_size
        self.parameters = 1
        self.int8_rows = 0
        self.device = CPU
        self.kv_shape = KVShape(layers=1, heads=1, head_dim=1, dtype=torch.float64, device=CPU)
        self.poison = poison
        self.fails: Exception | None = None
        self.forwards: list[tuple[int, list[int]]] = []

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Notes (rows that decode, sizes of the chunks) in `forwards`."""
        self.forwards.append((sum(len(g.bucket) for g in batch.decodes), [c.stop - c.start for c in batch.chunks]))
        if self.fails is not None:
            raise self.fails
        tokens, positions = batch.token_ids.tolist(), batch.positions.tolist()
        seen: list[list[int]] = [[] for _ in tokens]
        for group in batch.decodes:
            for slot, length in enumerate(group.lengths.tolist()):
                at = group.start + slot
                assert positions[at] == length
                seen[at] = _store(group.bucket.slab[:, 0, slot, 0, :, 0], [tokens[at]], length)
        for chunk in batch.chunks:
            assert positions[chunk.start : chunk.stop] == [
                *range(chunk.before, chunk.before + chunk.stop - chunk.start)
            ]
            row = _store(chunk.states[:, 0, 0, :, 0], tokens[chunk.start : chunk.stop], chunk.before)
            for at in range(chunk.start, chunk.stop):
                seen[at] = row[: chunk.before + at - chunk.start + 1]
        return torch.stack([self._logits(seen[at]) for at in batch.logits_at.tolist()] or [torch.empty(0)])

    def next_token(self, seen: Sequence[int]) -> int:
        return int(sum((i + 1) * (token + 1) for i, token in enumerate(seen)) % self.vocab_size)

    def answer(self, prompt: Sequence[int], tokens: int) -> list[int]:
        """What a row alone is given."""
        seen = list(prompt)
        for _ in range(tokens):
            seen.append(self.next_token(seen))
        return seen[len(prompt) :]

    def _logits(self, seen: list[int]) -> torch.Tensor:
        if self.poison is not None and seen[-1] == self.poison:
            return torch.full((self.vocab_size,), float("nan"))
        logits = torch.zeros(self.vocab_size)
        logits[self.next_token(seen)] = 1.0
        return logits


def _store(states: torch.Tensor, tokens: Sequence[int], before: int) -> list[int]:
    """Keep tokens as keys and their negatives as values; returns all that is there. states: [2, columns]."""
    new = torch.tensor(tokens, dtype=states.dtype)
    states[0, before : before + len(tokens)] = new
    states[1, before : before + len(tokens)] = -new
    keys, values = states[:, : before + len(tokens)].tolist()
    assert [-value for value in values] == keys, "keys and values lie apart"
    return [int(key) for key in keys]


def engine_of(model: PackedModel, eos: Sequence[int] = (), **options: Any) -> StepwiseEngine:
    """A second passes between any two looks at the clock."""
    return StepwiseEngine(model, eos, clock=itertools.count(0.0, 1.0).__next__, **options)


def entry(
    id: int,
    token_ids: Sequence[int],
    max_tokens: int = 12,
    sampling: Sampling = GREEDY,
    *,
    generated: Sequence[Generated] = (),
    **options: Any,
) -> Joining[Prompt, Generated]:
    return Joining(id, Prompt(token_ids, max_tokens, sampling, **options), generated)


class Run:
    """Drives an engine and gathers what each row was given."""

    def __init__(self, engine: StepwiseEngine) -> None:
        self.engine = engine
        self.given: dict[int, list[Generated]] = {}
        self.finished: dict[int, str] = {}
        self.errors: dict[int, Exception] = {}

    @property
    def tokens(self) -> dict[int, list[int]]:
        return {id: [token.choice.token for token in given] for id, given in self.given.items()}

    def step(self, *joining: Joining[Prompt, Generated], leaving: Sequence[int] = ()) -> list[int]:
        """Who had an outcome."""
        outputs = self.engine.step(joining, leaving)
        for output in outputs:
            assert output.id not in self.finished and output.id not in self.errors
            if output.token is not None:
                self.given.setdefault(output.id, []).append(output.token)
            if output.finish_reason is not None:
                self.finished[output.id] = output.finish_reason
            if output.error is not None:
                self.errors[output.id] = output.error
        return [output.id for output in outputs]

    def until_done(self, *joining: Joining[Prompt, Generated]) -> dict[int, list[int]]:
        """Step until nothing is left; returns what each row was given."""
        self.step(*joining)
        while self.engine.cache_bytes:
            self.step()
        return self.tokens


def alone(model: PackedModel, token_ids: Sequence[int], max_tokens: int = 12, sampling: Sampling = GREEDY) -> list[int]:
    """What a fresh engine gives to one row."""
    return Run(engine_of(model)).until_done(entry(0, token_ids, max_tokens, sampling))[0]


def causal_model(
    config: PretrainedConfig, device: torch.device = CPU, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Random weights, the same every time, with transformers' own attention."""
    torch.manual_seed(0)
    return _to(_new(config), device, dtype)


def fast_copy(reference: PreTrainedModel) -> LlamaModel:
    """On the reference's device and in its dtype, as the other copies."""
    config = LlamaConfig.read(reference.config.to_dict())
    assert config is not None
    weights: Mapping[str, torch.Tensor] = reference.state_dict()
    return LlamaModel(config, weights.__getitem__, reference.dtype, reference.device)


def general_copy(reference: PreTrainedModel) -> GeneralModel:
    return GeneralModel(with_packed_attention(reference))


def with_packed_attention(reference: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model as it is loaded for the general path."""
    config = copy.deepcopy(reference.config)  # a config knows the attention of its model
    model: PreTrainedModel = _new(config, attn_implementation=ATTENTION)
    model.load_state_dict(reference.state_dict())
    return _to(model, reference.device, reference.dtype)


def _to(model: Any, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    moved: PreTrainedModel = model.to(device, dtype)
    return moved


def _new(config: PretrainedConfig, **options: Any) -> Any:
    from_config: Any = AutoModelForCausalLM.from_config
    return from_config(config, dtype=torch.float32, **options).eval().requires_grad_(False)


def generate(reference: PreTrainedModel, token_ids: Sequence[int], tokens: int) -> list[int]:
    """The first tokens of transformers' greedy answer, whose ends are not looked at."""
    generate: Any = reference.generate
    output = generate(
        torch.tensor([list(token_ids)], device=reference.device),
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    answer: list[int] = output[0, len(token_ids) :].tolist()
    assert len(answer) == tokens
    return answer
