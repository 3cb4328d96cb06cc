"""The chat engine where it runs: on the processor by default, and the same on a GPU with `-m gpu`."""

import asyncio
import importlib.util
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, PreTrainedModel

from batching.generation import ContinuousBatcher
from batching.job import Job
from batching.limits import Limits
from handlers.chat.engine import Generated, Prompt
from handlers.chat.general import GeneralModel, checked
from handlers.chat.loading import load
from handlers.chat.packed import PackedBatch, PackedModel
from handlers.chat.self_check import check_packed, probes
from handlers.chat.types import Sampling
from handlers.devices import is_out_of_memory, release_memory, synchronize
from handlers.spec import ModelSpec, Task
from tests.batching.fakes import SteppedWorker, serving
from tests.clock import MANUAL_CLOCK
from tests.handlers.engines import GREEDY, Run, causal_model, engine_of, entry, fast_copy, general_copy, generate
from tests.handlers.tiny import save_chat_model

CONFIG = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    initializer_range=0.3,
)
PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [20, 21, 22, 23, 24], [33], [*range(1, 50)]]
MORE_THAN_ANY = 1 << 50
COPIES: dict[str, Callable[[PreTrainedModel], PackedModel]] = {"fast": fast_copy, "general": general_copy}


@pytest.fixture
def anyio_backend() -> object:
    return MANUAL_CLOCK


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device: it needs the driver and a CUDA build of torch")
    return torch.device(request.param)


@pytest.fixture
def reference(device: torch.device) -> PreTrainedModel:
    return causal_model(CONFIG, device)


@pytest.fixture(params=list(COPIES))
def model(request: pytest.FixtureRequest, reference: PreTrainedModel) -> PackedModel:
    return COPIES[request.param](reference)


def test_rows_that_come_and_go_get_what_transformers_gives_them(model: PackedModel, reference: PreTrainedModel) -> None:
    run = Run(engine_of(model))
    run.step(entry(0, PROMPTS[0], 20), entry(1, PROMPTS[1], 4))
    run.step(entry(2, PROMPTS[2], 140))
    run.step(entry(9, PROMPTS[1], 50))
    run.step(leaving=[9])
    run.until_done(entry(3, PROMPTS[3], 12))

    expected = {i: generate(reference, PROMPTS[i], n) for i, n in ((0, 20), (1, 4), (2, 140), (3, 12))}
    assert {i: run.tokens[i] for i in expected} == expected


def test_a_known_beginning_is_not_computed_again(model: PackedModel, reference: PreTrainedModel) -> None:
    run = Run(engine_of(model, prefix_cache_bytes=1 << 20))
    longer = [*PROMPTS[3], 50, 51]
    run.until_done(entry(0, PROMPTS[3]))
    run.until_done(entry(1, longer))

    assert run.given[1][0].cached_tokens == 48
    assert run.tokens[1] == generate(reference, longer, 12)


def test_keys_and_values_are_on_the_device(
    model: PackedModel, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[str] = set()
    forward = model.forward

    def watched(batch: PackedBatch) -> torch.Tensor:
        tensors = [batch.token_ids, *(c.states for c in batch.chunks), *(g.bucket.slab for g in batch.decodes)]
        seen.update(tensor.device.type for tensor in tensors)
        return forward(batch)

    monkeypatch.setattr(model, "forward", watched)
    Run(engine_of(model)).until_done(entry(0, PROMPTS[0]), entry(1, PROMPTS[1]))
    synchronize(device)

    assert seen == {device.type}


def test_bfloat16_is_close_to_what_the_model_computes_alone(device: torch.device) -> None:
    reference = causal_model(CONFIG, device, torch.bfloat16)
    alone: list[Any] = [reference(torch.tensor([probe], device=device)).logits[0] for probe in probes(64)]

    check_packed(fast_copy(reference), alone)
    checked(general_copy(reference)._model)


def test_a_seeded_draw_is_the_same_again(model: PackedModel) -> None:
    warm = Sampling(temperature=1.0, top_p=0.9, seed=7)
    runs = [Run(engine_of(model)).until_done(entry(0, PROMPTS[0], 12, warm)) for _ in range(2)]

    assert runs[0] == runs[1]


def test_a_device_without_room_says_so_in_words_that_are_known(device: torch.device) -> None:
    with pytest.raises(RuntimeError) as failed:
        torch.empty(MORE_THAN_ANY, dtype=torch.uint8, device=device)

    assert is_out_of_memory(failed.value)
    release_memory()


@pytest.mark.anyio
async def test_when_memory_runs_out_every_answer_still_comes(
    model: PackedModel, reference: PreTrainedModel, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, overflows = model.forward, 0

    def hungry(batch: PackedBatch) -> torch.Tensor:
        nonlocal overflows
        if len(batch.logits_at) > 2:
            overflows += 1
            torch.empty(MORE_THAN_ANY, dtype=torch.uint8, device=device)
        return forward(batch)

    monkeypatch.setattr(model, "forward", hungry)
    worker = SteppedWorker()
    worker.open()
    limits = Limits(max_queue_size=10, max_queue_cost=10**6, max_batch_size=8, max_batch_cost=10**6)
    batcher = ContinuousBatcher("model", engine_of(model), limits, worker=worker, is_out_of_memory=is_out_of_memory)
    async with serving(batcher):
        answers = await asyncio.gather(*(_answer(batcher, prompt) for prompt in PROMPTS))
        await batcher.drain()

    assert answers == [generate(reference, prompt, 12) for prompt in PROMPTS]
    assert overflows


async def _answer(batcher: ContinuousBatcher[Prompt, Generated], prompt: list[int]) -> list[int]:
    tokens: list[int] = []
    group = batcher.open_all([Job(Prompt(prompt, 12, GREEDY), cost=len(prompt))])
    async with group, aclosing(group.read()) as pieces:
        async for _, more in pieces:
            tokens += [token.choice.token for token in more]
    return tokens


@pytest.mark.gpu
@pytest.mark.parametrize("quantization", ["bnb-8bit", "bnb-4bit"])
def test_quantized_weights_are_loaded_and_answer(quantization: str, tmp_path: Path) -> None:
    if not torch.cuda.is_available() or importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("it needs a CUDA device and the extra quantization")
    save_chat_model(tmp_path)
    loaded = load(ModelSpec("tiny", Task.CHAT, "dir:x", device="cuda", quantization=quantization), tmp_path)
    assert isinstance(loaded.model, GeneralModel)
    run = Run(engine_of(loaded.model))

    run.until_done(*(entry(i, prompt) for i, prompt in enumerate(PROMPTS)))

    assert [len(tokens) for tokens in run.tokens.values()] == [12] * len(PROMPTS)
