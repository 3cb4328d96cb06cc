"""Kernels against PyTorch's operators, and whole models of 8-bit weights against transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import LlamaConfig as TransformersLlamaConfig
from transformers import MistralConfig, PretrainedConfig, PreTrainedModel, Qwen2Config, Qwen3Config

from handlers.chat.llama import LlamaConfig, LlamaModel
from handlers.kernels.attention import attend_rows
from handlers.kernels.compiled import kernel, kernels_pay
from handlers.kernels.elementwise import exponentiate, gate, normalize, rotate
from handlers.kernels.product import add_product, panels
from handlers.linear import ALL_ROWS, Int8Linear, rows_faster_in_int8
from handlers.sources import fetch
from handlers.starter import CHAT
from tests.handlers.engines import CPU, Run, causal_model, engine_of, entry, generate
from tests.perf.chat_quality import distances

pytestmark = pytest.mark.skipif(not kernels_pay(), reason="there is no libgomp for Numba here")

SIZES: dict[str, Any] = {
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 41,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PROMPTS = [[5, 6, 7], [9, 8, 7, 6, 5, 4, 3, 2, 1, 10, 11, 12], [33], [20 + i % 40 for i in range(140)], [7, 7]]


def normal(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def rounded_numbers(rows: int, columns: int, dtype: Any) -> Any:
    return np.random.default_rng(1).integers(-127, 128, (rows, columns)).astype(dtype)


def test_where_nothing_can_be_kept_kernels_are_compiled_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numba.core.caching.CompileResultCacheImpl._locator_classes", [])
    assert kernel(_one_more)(2) == 3


def _one_more(number: int) -> int:
    return number + 1


@pytest.mark.parametrize("rows", [*range(1, 15), 40])
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 3), (16, 8), (33, 17), (96, 64), (131, 40)])
@pytest.mark.parametrize("dtype", [np.int8, np.float32])
def test_a_product_is_added(rows: int, outputs: int, inputs: int, dtype: Any) -> None:
    x, scales, out = normal(rows, inputs), np.abs(normal(outputs)), normal(rows, outputs)
    weight = rounded_numbers(outputs, inputs, dtype)
    expected = out + x @ (weight * scales[:, None]).T
    add_product(x, panels(weight), scales, out)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-3)


def test_a_product_goes_to_a_part_of_a_larger_array() -> None:
    x, out = normal(7, 20), np.zeros((7, 48), np.float32)
    weight = normal(16, 12)
    add_product(x[:, 4:16], panels(weight), np.ones(16, np.float32), out[:, 16:32])
    np.testing.assert_allclose(out[:, 16:32], x[:, 4:16] @ weight.T, rtol=1e-4, atol=1e-4)
    assert not out[:, :16].any() and not out[:, 32:].any()


@settings(max_examples=50)
@given(st.lists(st.floats(-200, 200, width=32), min_size=1, max_size=40))
def test_exponentials(values: list[float]) -> None:
    x = np.array(values, np.float32)
    expected = np.exp(np.clip(x.astype(np.float64), -87, 88))
    exponentiate(x, np.empty(len(x), np.int32))
    np.testing.assert_allclose(x, expected, rtol=5e-7)


def test_what_is_not_a_number_stays_so() -> None:
    x = np.array([1.0, np.nan, 2.0], np.float32)
    exponentiate(x, np.empty(3, np.int32))
    assert np.isnan(x).tolist() == [False, True, False]


def test_norms() -> None:
    x, weight, out = normal(5, 24), normal(24), normal(5, 24)
    normalize(x, weight, 1e-5, out)
    expected = F.rms_norm(torch.from_numpy(x), (24,), torch.from_numpy(weight), 1e-5)
    np.testing.assert_allclose(out, expected.numpy(), rtol=1e-5)


def test_gates() -> None:
    x, out = normal(3, 2 * 20) * 10, np.empty((3, 20), np.float32)
    for first, last in ((0, 7), (7, 20)):
        gate(x, out, first, last, np.empty(last - first, np.int32))
    left, right = torch.from_numpy(x).chunk(2, dim=1)
    np.testing.assert_allclose(out, (F.silu(left) * right).numpy(), rtol=1e-5, atol=1e-6)


def test_rotations() -> None:
    heads, angles = normal(3, 8), np.tile(normal(4), 2)
    first, second = heads[:, :4], heads[:, 4:]
    expected = heads * np.cos(angles) + np.concatenate([-second, first], axis=1) * np.sin(angles)
    rotate(heads, np.cos(angles), np.sin(angles))
    np.testing.assert_allclose(heads, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("window", [0, 5])
@pytest.mark.parametrize("group", [1, 3])
def test_attention_of_rows_of_different_length(window: int, group: int) -> None:
    lengths, heads = np.array([0, 3, 17]), 2 * group
    query, key, value = normal(3, heads, 8), normal(3, 2, 8), normal(3, 2, 8)
    slab, out = normal(2, 2, 4, 2, 20, 8), np.empty((3, heads, 8), np.float32)
    attend_rows(query, key, value, slab, 1, lengths, window, out)
    for row, length in enumerate(lengths):
        np.testing.assert_array_equal(slab[:, 1, row, :, length], [key[row], value[row]])
        first = max(0, length + 1 - window) if window else 0
        keys, values = torch.from_numpy(slab[:, 1, row, :, first : length + 1])
        expected = F.scaled_dot_product_attention(torch.from_numpy(query[row]).view(2, group, 8), keys, values)
        np.testing.assert_allclose(out[row], expected.view(heads, 8).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 3, 9])
@pytest.mark.parametrize("many", [None, torch.float32])
def test_a_linear_layer_of_few_and_of_many_rows(rows: int, many: torch.dtype | None) -> None:
    torch.manual_seed(0)
    weight, bias, x = rounded(torch.randn(21, 16)), torch.randn(21), torch.randn(rows, 16)
    linear = Int8Linear(weight, bias, few_rows=4, many=many)
    torch.testing.assert_close(linear(x), F.linear(x, weight, bias), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(linear.rows(torch.tensor([3, 3, 0])), weight[[3, 3, 0]])


def test_a_row_of_zeros_has_a_scale() -> None:
    assert Int8Linear(torch.zeros(2, 4))(torch.ones(1, 4)).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(
    ("seconds", "rows"),
    [
        ([1.0, 2.0], 64),
        ([2.0, 1.0, 1.0, 2.0], 32),
        ([2.0, 1.0] * 6, 0),
    ],
)
def test_how_many_rows_are_few_is_measured(monkeypatch: pytest.MonkeyPatch, seconds: list[float], rows: int) -> None:
    """seconds: of int8 and of the other, from 64 rows down."""
    takes = iter(seconds)
    monkeypatch.setattr("handlers.linear.tiles_suit_processor", lambda: False)
    monkeypatch.setattr("handlers.linear._seconds", lambda linear, x, clock: next(takes))
    assert rows_faster_in_int8(torch.float32) == rows
    assert list(takes) == []


def test_where_the_tiles_suit_all_rows_are_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX2")
    assert rows_faster_in_int8(torch.float32) == ALL_ROWS


def test_without_kernels_no_rows_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handlers.linear.kernels_pay", lambda: False)
    assert rows_faster_in_int8(torch.float32) == 0


@pytest.mark.parametrize(
    "config",
    [
        TransformersLlamaConfig(**SIZES, tie_word_embeddings=True),
        TransformersLlamaConfig(**SIZES, attention_bias=False),
        MistralConfig(**SIZES, sliding_window=6),
        Qwen2Config(**SIZES),
        Qwen3Config(**SIZES, head_dim=16),
    ],
    ids=["tied", "llama", "window", "bias", "norms"],
)
@pytest.mark.parametrize("rows", [4, ALL_ROWS])
def test_models_answer_as_transformers_do(config: PretrainedConfig, rows: int) -> None:
    reference = with_rounded_weights(causal_model(config))
    model = int8_copy(reference, rows)
    answers = Run(engine_of(model)).until_done(*(entry(i, prompt, 30) for i, prompt in enumerate(PROMPTS)))
    assert answers == {i: generate(reference, prompt, 30) for i, prompt in enumerate(PROMPTS)}
    for i, prompt in enumerate(PROMPTS):
        assert Run(engine_of(model)).until_done(entry(0, prompt, 30))[0] == answers[i]


def test_a_row_that_is_not_a_number_leaves_its_neighbours_alone() -> None:
    reference = with_rounded_weights(causal_model(TransformersLlamaConfig(**SIZES)))
    model = int8_copy(reference)
    run = Run(engine_of(model))
    run.step(*(entry(i, prompt, 8) for i, prompt in enumerate(PROMPTS)))
    (bucket, _) = run.engine._cache
    with torch.inference_mode():
        bucket.slab[0, 0, bucket.owners.index(1)] = float("nan")
    run.until_done()
    assert list(run.errors) == [1]
    for i in (0, 2, 3, 4):
        assert run.tokens[i] == generate(reference, PROMPTS[i], 8)


def rounded(weight: torch.Tensor) -> torch.Tensor:
    """What 8 bits can hold, so that rounding it again changes nothing."""
    scales = weight.abs().amax(dim=1, keepdim=True) / 127
    return (weight / scales).round() * scales


def with_rounded_weights(model: PreTrainedModel) -> PreTrainedModel:
    for name, weight in model.named_parameters():
        if name.endswith("proj.weight") or name in ("lm_head.weight", "model.embed_tokens.weight"):
            weight.copy_(rounded(weight))
    return model


def int8_copy(reference: PreTrainedModel, rows: int = ALL_ROWS) -> LlamaModel:
    config = LlamaConfig.read(reference.config.to_dict())
    assert config is not None
    return LlamaModel(config, reference.state_dict().__getitem__, torch.float32, CPU, int8_rows=rows)


@pytest.mark.models
def test_the_starter_model_keeps_its_quality_in_the_default_format(models_dir: Path) -> None:
    folder = fetch(CHAT.source, models_dir, offline=True)
    assert all(found.passes for found in distances(folder, "auto"))
