"""Pooling and what follows it, from sentence-transformers' files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from handlers.embeddings.pooling import load_pooling

CPU = torch.device("cpu")
HIDDEN = torch.tensor([[[1.0, -4.0], [3.0, 8.0], [2.0, 5.0]]])


def layout(folder: Path, pooling: dict[str, Any], *after: str) -> Path:
    kinds = ["Transformer", "Pooling", *after]
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": f"{i}_{kind}"} for i, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    for module in modules:
        (folder / module["path"]).mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 2, **pooling}))
    return folder


@pytest.mark.parametrize(
    ("switch", "mode", "expected"),
    [
        ("cls_token", "cls", [1, -4]),
        ("max_tokens", "max", [3, 8]),
        ("mean_tokens", "mean", [2, 3]),
        ("mean_sqrt_len_tokens", "mean_sqrt_len_tokens", [6 / 3**0.5, 9 / 3**0.5]),
        ("weightedmean_tokens", "weightedmean", [(1 + 6 + 6) / 6, (-4 + 16 + 15) / 6]),
        ("lasttoken", "lasttoken", [2, 5]),
    ],
)
def test_every_mode_in_both_spellings(tmp_path: Path, switch: str, mode: str, expected: list[float]) -> None:
    for name, config in (("old", {f"pooling_mode_{switch}": True}), ("new", {"pooling_mode": mode})):
        (tmp_path / name).mkdir()
        pooling = load_pooling(layout(tmp_path / name, config), CPU)
        torch.testing.assert_close(pooling(HIDDEN), torch.tensor([expected], dtype=torch.float32))


def test_several_modes_are_joined(tmp_path: Path) -> None:
    switches = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True, "pooling_mode_max_tokens": False}
    pooling = load_pooling(layout(tmp_path, switches), CPU)
    assert pooling(HIDDEN).tolist() == [[1, -4, 2, 3]]
    assert pooling.dimensions(2, CPU) == 4


def test_a_dense_module_and_normalisation_follow_in_their_order(tmp_path: Path) -> None:
    folder = layout(tmp_path, {"pooling_mode": "mean"}, "Dense", "Normalize")
    weight, bias = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), torch.tensor([0.0, 1.0, -9.0])
    save_file({"linear.weight": weight, "linear.bias": bias}, folder / "2_Dense" / "model.safetensors")
    settings = {"in_features": 2, "out_features": 3, "activation_function": "torch.nn.modules.activation.ReLU"}
    (folder / "2_Dense" / "config.json").write_text(json.dumps(settings))
    pooling = load_pooling(folder, CPU)
    torch.testing.assert_close(pooling(HIDDEN), torch.tensor([[2.0, 4.0, 0.0]]))
    assert pooling.normalizes
    assert pooling.dimensions(2, CPU) == 3


def test_a_dense_module_with_an_unknown_activation_is_refused(tmp_path: Path) -> None:
    folder = layout(tmp_path, {"pooling_mode": "mean"}, "Dense")
    (folder / "2_Dense" / "config.json").write_text('{"activation_function": "my.own.Act"}')
    with pytest.raises(ValueError, match="2_Dense has activation Act"):
        load_pooling(folder, CPU)


@pytest.mark.parametrize("after", [["Pooling"], ["LSTM"]])
def test_a_layout_that_cannot_be_followed_is_refused(tmp_path: Path, after: list[str]) -> None:
    (tmp_path / "modules.json").write_text(
        json.dumps([{"type": f"a.{kind}", "path": ""} for kind in ["Transformer", "Pooling", *after]])
    )
    with pytest.raises(ValueError, match=r"modules\.json"):
        load_pooling(tmp_path, CPU)


def test_without_modules_vectors_are_mean_and_normalised(tmp_path: Path) -> None:
    pooling = load_pooling(tmp_path, CPU)
    torch.testing.assert_close(pooling(HIDDEN), torch.tensor([[2.0, 3.0]]))
    assert pooling.normalizes


def test_only_a_last_normalisation_is_left_to_the_caller(tmp_path: Path) -> None:
    folder = layout(tmp_path, {"pooling_mode": "mean"}, "Normalize", "Dense")
    save_file({"linear.weight": torch.tensor([[2.0, 0.0]])}, folder / "3_Dense" / "model.safetensors")
    (folder / "3_Dense" / "config.json").write_text('{"activation_function": "torch.nn.modules.linear.Identity"}')
    pooling = load_pooling(folder, CPU)
    torch.testing.assert_close(pooling(HIDDEN), torch.tensor([[4.0]]) / 13**0.5)
    assert not pooling.normalizes
