"""The chat engine alone: step time by batch size, beside what the machine could do at best.

    python -m tests.perf.chat_engine MODEL_FOLDER
    python -m tests.perf.chat_engine MODEL_FOLDER --rows 1 8 --context 512 --dtype bfloat16
    python -m tests.perf.chat_engine --random 8B --device cuda --rows 1 16 64 256 --beside

The limit is the larger of two times: to read every weight once, in the size it is read in, and to multiply it for each
row, at the bandwidth and the GEMM rate that this device shows in a moment of its own. `--random` needs no model folder:
the weights, of the shapes of Llama 3, are made on the device. `--beside` times transformers itself as well, in the same
dtype and at the same batch sizes: `generate` with one batch from beginning to end, and its continuous batching.
"""

import argparse
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from batching.generation import Joining
from handlers.chat.engine import Prompt, StepwiseEngine
from handlers.chat.llama import LlamaConfig, LlamaModel
from handlers.chat.loading import load
from handlers.chat.packed import PackedModel
from handlers.chat.types import Sampling
from handlers.devices import pick_device, pick_dtype, synchronize
from handlers.linear import rows_faster_in_int8
from handlers.spec import ModelSpec, Task

GREEDY = Sampling(temperature=0, ignore_eos=True)
_SHAPES = {
    # layers, hidden size, intermediate size, heads, key heads, vocabulary; Llama 3's (Meta, 2024) but for the smallest
    "10M": (6, 256, 1024, 4, 2, 16_384),
    "1B": (16, 2048, 8192, 32, 8, 128_256),
    "3B": (28, 3072, 8192, 24, 8, 128_256),
    "8B": (32, 4096, 14_336, 32, 8, 128_256),
}
_DEVIATION = 0.02


def best_seconds(call: Callable[[], object], device: torch.device, times: int = 5) -> float:
    """The shortest of some runs, each until the device is done, after one to warm up."""
    return min([_seconds(call, device) for _ in range(times + 1)][1:])


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    started = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - started


def bytes_per_second(dtype: torch.dtype, device: torch.device) -> float:
    """Reading memory that no cache holds."""
    size = 256 * 1024 * 1024 if device.type == "cpu" else 2 * 1024 * 1024 * 1024
    memory = torch.ones(size // dtype.itemsize, dtype=dtype, device=device)
    return memory.nbytes / best_seconds(memory.sum, device)


def flops_per_second(dtype: torch.dtype, device: torch.device) -> float:
    rows, size = (512, 2048) if device.type == "cpu" else (8192, 8192)
    left = torch.randn(rows, size, dtype=dtype, device=device)
    right = torch.randn(size, size, dtype=dtype, device=device)
    return 2 * rows * size * size / best_seconds(lambda: left @ right, device)


def decode_seconds(engine: StepwiseEngine, rows: int, context: int, steps: int) -> float:
    """Median seconds of a step in which so many rows of so many tokens generate; the device is done at its end."""
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


def prefill_seconds(engine: StepwiseEngine, tokens: int, device: torch.device) -> float:
    def prefill() -> None:
        outputs = engine.step([Joining(0, Prompt([7] * tokens, 2, GREEDY), ())], [])
        while not outputs:
            outputs = engine.step([], [])
        engine.reset()

    return best_seconds(prefill, device, 3)


def llama_config(size: str) -> dict[str, Any]:
    """As in a config.json."""
    layers, hidden, intermediate, heads, key_heads, vocabulary = _SHAPES[size]
    return {
        "model_type": "llama",
        "hidden_act": "silu",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "vocab_size": vocabulary,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
        "max_position_embeddings": 131_072,
        "tie_word_embeddings": False,
    }


def random_model(size: str, dtype: torch.dtype, device: torch.device, *, rounds: bool) -> LlamaModel:
    """rounds: whether a processor may read weights as 8 bits, as it does for a model that is served."""
    config = LlamaConfig.read(llama_config(size))
    assert config is not None
    int8_rows = rows_faster_in_int8(dtype) if rounds and device.type == "cpu" else 0
    return LlamaModel(config, partial(_random_weight, config, dtype, device), dtype, device, int8_rows=int8_rows)


def _random_weight(config: LlamaConfig, dtype: torch.dtype, device: torch.device, name: str) -> torch.Tensor:
    """By its name in a checkpoint. Raises KeyError for one that such a model does not have."""
    hidden, intermediate = config.hidden_size, config.intermediate_size
    heads, key_heads = config.heads * config.head_dim, config.key_heads * config.head_dim
    if name.endswith("norm.weight"):
        return torch.ones(hidden, dtype=dtype, device=device)
    shape = {
        "q_proj.weight": (heads, hidden),
        "k_proj.weight": (key_heads, hidden),
        "v_proj.weight": (key_heads, hidden),
        "o_proj.weight": (hidden, heads),
        "gate_proj.weight": (intermediate, hidden),
        "up_proj.weight": (intermediate, hidden),
        "down_proj.weight": (hidden, intermediate),
        "embed_tokens.weight": (config.vocab_size, hidden),
        "lm_head.weight": (config.vocab_size, hidden),
    }[".".join(name.split(".")[-2:])]
    return torch.randn(shape, dtype=dtype, device=device).mul_(_DEVIATION)


class Transformers:
    """The same model in transformers, with its own loops."""

    def __init__(self, options: argparse.Namespace, dtype: torch.dtype, device: torch.device) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        logging.disable(logging.WARNING)  # it warns for every call
        auto: Any = AutoModelForCausalLM
        if options.random:
            config = AutoConfig.for_model(**llama_config(options.random))
            with device:
                self._model = auto.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()
        else:
            self._model = auto.from_pretrained(options.folder, dtype=dtype, device_map={"": device})
        self._model.generation_config.eos_token_id = None
        self._device = device

    def step_seconds(self, generate: Callable[[list[list[int]], int], object], rows: int, context: int) -> float:
        """Of all tokens but the first, so that the prompt does not count. The shorter of two runs of each length."""
        prompts = [[7 + row] * context for row in range(rows)]
        few, many = 2, 34
        shorter, longer = (
            best_seconds(lambda tokens=tokens: generate(prompts, tokens), self._device, 2)  # type: ignore[misc]
            for tokens in (few, many)
        )
        self._model.destroy_cached_continuous_batching_manager()  # it is as large as its first requests need
        return (longer - shorter) / (many - few)

    def static(self, prompts: Sequence[Sequence[int]], tokens: int) -> None:
        ids = torch.tensor(prompts, device=self._device)
        self._model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=self._config(tokens))

    def continuous(self, prompts: Sequence[Sequence[int]], tokens: int) -> None:
        from transformers import ContinuousBatchingConfig

        # By default it takes nearly all free memory, which a processor has to share.
        memory = 0.1 if self._device.type == "cpu" else None
        answers = self._model.generate_batch(
            [*map(list, prompts)],
            generation_config=self._config(tokens),
            continuous_batching_config=ContinuousBatchingConfig(max_memory_percent=memory),
            persistent_manager=True,
        )
        assert len(answers) == len(prompts), "its continuous batching left answers out"

    def _config(self, tokens: int) -> Any:
        from transformers import GenerationConfig

        config: Any = GenerationConfig
        return config(max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0)


def main() -> None:
    options = _options()
    device = torch.device(pick_device(options.device))
    model = _model(options, device)
    engine, dtype = StepwiseEngine(model, []), model.kv_shape.dtype
    bandwidth, rate = bytes_per_second(dtype, device), flops_per_second(dtype, device)
    print(  # noqa: T201
        f"{model.parameters / 1e6:.0f} M weights on {device} in {dtype}, "
        f"{bandwidth / 1e9:.1f} GB/s, {rate / 1e9:.0f} GFLOP/s"
    )
    for rows in options.rows:
        bytes_a_weight = 1 if rows <= model.int8_rows else dtype.itemsize
        limit = max(model.parameters * bytes_a_weight / bandwidth, 2 * model.parameters * rows / rate)
        _print_decode("decode", rows, decode_seconds(engine, rows, options.context, options.steps), limit)
    for tokens in options.prompts:
        seconds, limit = prefill_seconds(engine, tokens, device), 2 * model.parameters * tokens / rate
        print(  # noqa: T201
            f"prefill    {tokens:>5} tokens  {seconds * 1e3:8.1f} ms          {tokens / seconds:7.0f} tok/s  "
            f"limit {limit * 1e3:6.1f} ms  {limit / seconds:4.0%}"
        )
    if options.beside:
        other = Transformers(options, dtype, device)
        for rows in options.rows:
            limit = max(model.parameters * dtype.itemsize / bandwidth, 2 * model.parameters * rows / rate)
            for name, generate in (("static", other.static), ("continuous", other.continuous)):
                _print_decode(name, rows, other.step_seconds(generate, rows, options.context), limit)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("folder", type=Path, nargs="?", help="a model in the format of transformers")
    source.add_argument("--random", choices=list(_SHAPES), help="random weights, of a model of so many parameters")
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 4, 16, 32], help="batch sizes (1 4 16 32)")
    parser.add_argument("--prompts", type=int, nargs="*", default=[97, 256, 1024], help="prompt lengths (97 256 1024)")
    parser.add_argument("--context", type=int, default=128, help="tokens of a row before it generates (128)")
    parser.add_argument("--steps", type=int, default=20, help="steps to take the median of (20)")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--beside", action="store_true", help="time transformers as well")
    return parser.parse_args()


def _model(options: argparse.Namespace, device: torch.device) -> PackedModel:
    if options.random:
        dtype = pick_dtype(str(device), options.dtype)
        return random_model(options.random, dtype, device, rounds=options.dtype == "auto")
    spec = ModelSpec("measured", Task.CHAT, f"dir:{options.folder}", dtype=options.dtype, device=str(device))
    return load(spec, options.folder).model


def _print_decode(name: str, rows: int, seconds: float, limit: float) -> None:
    print(  # noqa: T201
        f"{name:<10} {rows:>5} rows    {seconds * 1e3:8.1f} ms a step  {rows / seconds:7.0f} tok/s  "
        f"limit {limit * 1e3:6.1f} ms  {limit / seconds:4.0%}"
    )


if __name__ == "__main__":
    main()
