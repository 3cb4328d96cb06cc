"""The prepared linear layer, against the plain one."""

import pytest
import torch
from torch.nn import functional as F

from handlers.devices import packs_weights
from handlers.linear import ACTIVATIONS, Linear

CPU = torch.device("cpu")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("rows", [1, 7, 300])
@pytest.mark.parametrize("packed", [True, False])
def test_it_equals_the_plain_layer(monkeypatch: pytest.MonkeyPatch, activation: str, rows: int, packed: bool) -> None:
    if packed and not packs_weights(CPU, torch.float32):
        pytest.skip("oneDNN has no layout of its own here")
    monkeypatch.setattr("handlers.linear.packs_weights", lambda device, dtype: packed)
    torch.manual_seed(0)
    x, weight, bias = torch.randn(rows, 24), torch.randn(40, 24), torch.randn(40)
    with torch.inference_mode():
        expected = ACTIVATIONS[activation].plain(F.linear(x, weight, bias))
        torch.testing.assert_close(Linear(weight, bias, activation)(x), expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(Linear(weight)(x), F.linear(x, weight), atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(not packs_weights(CPU, torch.bfloat16), reason="this processor does not multiply bfloat16")
def test_bfloat16_is_packed_where_it_is_native() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(9, 24).bfloat16(), torch.randn(40, 24).bfloat16()
    with torch.inference_mode():
        torch.testing.assert_close(Linear(weight)(x), F.linear(x, weight), atol=0.1, rtol=0.02)


def test_only_weights_in_native_formats_on_the_processor_are_packed() -> None:
    assert not packs_weights(CPU, torch.float16)
    assert not packs_weights(torch.device("cuda"), torch.float32)
