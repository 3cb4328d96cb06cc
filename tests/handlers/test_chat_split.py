"""Chat models over several devices. One machine in a hundred has two accelerators, but each has a disk."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from transformers import PreTrainedModel

from handlers.chat import general
from handlers.chat.general import GeneralModel
from handlers.chat.loading import load
from handlers.chat.packed import PackedBatch, PackedModel
from handlers.errors import ModelLoadError
from handlers.pretrained import main_device
from handlers.spec import SPLIT, ModelSpec, Task
from tests.handlers.engines import CPU, Run, engine_of, entry
from tests.handlers.tiny import save_chat_model

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [20, 21, 22], [33]]
FIRST_LAYERS = 130_000
"""Bytes that hold the embeddings and the first of the tiny model's two layers, with room for the other to pass."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("chat"))


def spec(**options: Any) -> ModelSpec:
    return ModelSpec("tiny", Task.CHAT, "dir:x", dtype="float32", **options)


def answers(model: PackedModel) -> dict[int, list[int]]:
    return Run(engine_of(model)).until_done(*(entry(i, prompt) for i, prompt in enumerate(PROMPTS)))


def places(model: PackedModel) -> set[object]:
    assert isinstance(model, GeneralModel)
    device_map: Any = model._model.hf_device_map
    return set(device_map.values())


@pytest.mark.parametrize("memory", [FIRST_LAYERS, 1_000], ids=["half on disk", "all on disk"])
def test_a_split_model_answers_as_the_whole_one(memory: int, folder: Path, tmp_path: Path) -> None:
    split = load(spec(device=SPLIT, max_memory={"cpu": memory}, offload_folder=str(tmp_path)), folder).model

    assert places(split) == ({"cpu", "disk"} if memory == FIRST_LAYERS else {"disk"})
    assert split.device == split.kv_shape.device == CPU
    assert answers(split) == answers(load(spec(device="cpu"), folder).model)


def test_a_model_that_fits_on_one_device_is_not_spread(folder: Path) -> None:
    model = load(spec(device=SPLIT), folder).model

    assert isinstance(model, GeneralModel)
    assert answers(model) == answers(load(spec(device="cpu"), folder).model)


def test_a_model_that_does_not_fit_says_so_and_what_to_do(folder: Path) -> None:
    with pytest.raises(ModelLoadError, match="^model tiny: does not fit .* max_memory; with an offload_folder, "):
        load(spec(device=SPLIT, max_memory={"cpu": FIRST_LAYERS}), folder)


def test_a_device_that_is_not_there_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelLoadError, match=r"device 'cuda:1' is not available here"):
        load(spec(device=SPLIT, max_memory={"cuda:1": 1}), folder)


@pytest.mark.parametrize(
    ("places", "device"),
    [
        ({"a": 1, "b": 0, "c": "cpu"}, "cuda:0"),
        ({"a": "disk", "b": 1}, "cuda:1"),
        ({"a": "mps", "b": "cpu"}, "mps"),
        ({"a": "cpu", "b": "disk"}, "cpu"),
        ({"a": "disk"}, "cpu"),
    ],
)
def test_the_cache_is_on_the_first_accelerator(places: dict[str, object], device: str) -> None:
    model = cast(PreTrainedModel, SimpleNamespace(hf_device_map=places, device=torch.device("meta")))

    assert main_device(model) == torch.device(device)


def test_a_layer_on_another_device_goes_to_the_cache_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """`meta` stands for the cache's device: nothing comes back from there, so the result is made on the layer's."""
    seen: list[str] = []

    def attend(batch: PackedBatch, layer: int, *states: Any, **options: Any) -> torch.Tensor:
        seen.extend(state.device.type for state in states[:3])
        return torch.zeros(4, 2, 8, device=CPU)

    monkeypatch.setattr(general, "attend", attend)
    tokens = torch.zeros(4, dtype=torch.long, device="meta")
    batch = PackedBatch(tokens, tokens, tokens, [], [])
    module = torch.nn.Module()
    module.layer_idx = 0  # type: ignore[assignment]
    query, key, value = (torch.zeros(1, 2, 4, 8) for _ in range(3))

    out, _ = general._attention(module, query, key, value, None, 1.0, packed=batch)

    assert seen == ["meta"] * 3
    assert (out.device, out.shape) == (CPU, (1, 4, 2, 8))
