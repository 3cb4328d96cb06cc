"""Any causal language model of transformers that lets its attention be replaced, over packed tokens.

transformers calls the attention of its models through a table by name; ours stands there beside sdpa and flash. What a
layer says about itself (scale, sliding window, soft cap) comes with the call.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from handlers.chat.kv_cache import KVShape
from handlers.chat.packed import PackedBatch, attend
from handlers.chat.self_check import check_packed, probes
from handlers.devices import is_out_of_memory
from handlers.errors import ModelLoadError
from handlers.pretrained import is_split, load_pretrained, main_device
from handlers.spec import ModelSpec

ATTENTION = "packed"

_UNKNOWN = ("s_aux", "position_bias", "head_mask")


class GeneralModel:
    """See handlers.chat.packed.PackedModel. model: loaded with `attn_implementation=ATTENTION`."""

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config.get_text_config(decoder=True)
        if not model._supports_attention_backend:
            raise ModelLoadError("their attention is built in")
        if model._is_stateful or model.config.is_encoder_decoder:
            raise ModelLoadError("they remember more than keys and values")
        heads = config.num_attention_heads
        self._model = model
        self._is_split = is_split(model)
        self.device = main_device(model)
        self.vocab_size = config.vocab_size
        self.parameters = model.num_parameters(exclude_embeddings=True) + config.vocab_size * config.hidden_size
        self.int8_rows = 0
        self.kv_shape = KVShape(
            config.num_hidden_layers,
            getattr(config, "num_key_value_heads", None) or heads,
            getattr(config, "head_dim", None) or config.hidden_size // heads,
            model.dtype,
            self.device,
        )

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Logits of the wanted tokens: [wanted, vocab_size]."""
        several_axes = batch.positions.dim() == 2
        logits: torch.Tensor = self._model(
            **self._tokens(batch),
            position_ids=batch.positions[:, None] if several_axes else batch.positions[None],
            use_cache=False,
            # A split model's last layer may be on another device than its inputs, which a list is taken on from any.
            logits_to_keep=batch.logits_at.tolist() if self._is_split else batch.logits_at,
            packed=batch,
        ).logits
        return logits[0]

    def _tokens(self, batch: PackedBatch) -> dict[str, torch.Tensor]:
        if batch.overlay is None:
            return {"input_ids": batch.token_ids[None]}
        embeddings: torch.Tensor = self._model.get_input_embeddings()(batch.token_ids)
        embeddings[batch.overlay.at] = batch.overlay.vectors
        return {"inputs_embeds": embeddings[None]}

    def alone(self, **inputs: Any) -> torch.Tensor:
        """Logits as transformers itself computes them: [tokens, vocab_size]."""
        self._model.set_attn_implementation(_for_text(self._model.config, "eager"))
        try:
            logits: torch.Tensor = self._model(**inputs, use_cache=False).logits
        finally:
            self._model.set_attn_implementation(_for_text(self._model.config, ATTENTION))
        return logits[0]

    @torch.inference_mode()
    def check(self) -> None:
        """Compare with the model's own computation. Raises ModelLoadError, or whatever the model stumbles over."""
        slides = _slides(self._model.config.get_text_config(decoder=True))
        alone = [self.alone(input_ids=torch.tensor([probe], device=self.device)) for probe in probes(self.vocab_size)]
        windows = check_packed(self, alone)
        if slides and not windows:
            raise ModelLoadError("they do not tell their attention about its sliding window")


def _for_text(config: PretrainedConfig, attention: str) -> str | dict[str, str]:
    """What makes the language model compute so, and leaves a vision tower beside it alone."""
    text = config.get_text_config(decoder=True)
    if text is config:
        return attention
    return {name: attention for name in config.sub_configs if getattr(config, name, None) is text}


def _slides(config: PretrainedConfig) -> bool:
    """Whether some layers have a sliding window. Raises ModelLoadError where layers are of yet another kind."""
    kinds = getattr(config, "layer_types", None)
    if not kinds:
        return bool(getattr(config, "sliding_window", None))
    if unknown := sorted(set(kinds) - {"full_attention", "sliding_attention"}):
        raise ModelLoadError(f"they have layers of {', '.join(unknown)}")
    return "sliding_attention" in kinds


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    packed: PackedBatch | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """query: [1, heads, tokens, head_dim], as transformers has it; returns [1, tokens, heads, head_dim].

    A layer of a split model may be on another device than the cache: its new queries, keys and values go there, which
    is little beside the cache, and the result comes back.
    """
    if packed is None:
        raise ModelLoadError("they do not hand their keyword arguments on to their attention")
    if unknown := [name for name in _UNKNOWN if kwargs.get(name) is not None]:
        raise ModelLoadError(f"their attention needs {', '.join(unknown)}")
    cache = packed.token_ids.device
    out = attend(
        packed,
        module.layer_idx,  # type: ignore[arg-type]  # a plain int; torch types every attribute as a tensor or module
        query[0].transpose(0, 1).contiguous().to(cache),
        key[0].transpose(0, 1).to(cache),
        value[0].transpose(0, 1).to(cache),
        query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
        softcap=softcap,
    )
    return out[None].to(query.device), None


def _no_mask(*args: object, **kwargs: object) -> None:
    """The packed batch knows who sees whom."""


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, _no_mask)


def load_general(spec: ModelSpec, folder: Path) -> GeneralModel:
    """Raises ModelLoadError with one line that names the model and what is wrong."""
    model = load_with_packed_attention(AutoModelForCausalLM, spec, folder)
    try:
        return checked(model)
    except ModelLoadError as error:
        raise ModelLoadError(f"model {spec.id}: {error}") from error


def load_with_packed_attention(auto_class: Any, spec: ModelSpec, folder: Path) -> PreTrainedModel:
    """Raises ModelLoadError with one line that names the model and what is wrong."""
    attention = _for_text(AutoConfig.from_pretrained(folder), ATTENTION)
    model, _ = load_pretrained(auto_class, spec, folder, attn_implementation=attention, **_quantization(spec))
    return model


def checked(model: PreTrainedModel) -> GeneralModel:
    """Raises ModelLoadError for a model that cannot compute packed batches, however that shows."""
    with refusing(model):
        general = GeneralModel(model)
        general.check()
    return general


@contextmanager
def refusing(model: PreTrainedModel) -> Iterator[None]:
    """Whatever a model stumbles over becomes ModelLoadError, but for a lack of memory."""
    try:
        yield
    except (
        ModelLoadError,
        ImportError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
        AttributeError,
        LookupError,
    ) as error:
        if is_out_of_memory(error):
            raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelLoadError(f"models of type {model.config.model_type} cannot be served: {reason}") from error


def _quantization(spec: ModelSpec) -> dict[str, Any]:
    if spec.quantization == "none":
        return {}
    eight = spec.quantization == "bnb-8bit"
    config = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_8bit=eight, load_in_4bit=not eight, bnb_4bit_compute_dtype=torch.bfloat16
    )
    return {"quantization_config": config}
