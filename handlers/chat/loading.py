"""A causal language model ready to chat."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from handlers.chat import gguf
from handlers.errors import ModelLoadError
from handlers.pretrained import load_pretrained, max_model_len
from handlers.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class ChatModel:
    """max_model_len: tokens of context, prompt and answer together. eos_token_ids: any of them ends an answer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    eos_token_ids: tuple[int, ...]
    max_model_len: int


def load(spec: ModelSpec, folder: Path) -> ChatModel:
    """Raises ModelLoadError with one line that names the model and what is wrong."""
    model, tokenizer = load_pretrained(AutoModelForCausalLM, spec, gguf.prepare(folder), **_quantization(spec))
    if tokenizer.chat_template is None:
        raise ModelLoadError(f"model {spec.id}: it has no chat template; take its instruct version")
    positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return ChatModel(model, tokenizer, _eos_token_ids(model, tokenizer), max_model_len(spec, None, positions))


def _quantization(spec: ModelSpec) -> dict[str, Any]:
    if spec.quantization == "none":
        return {}
    from transformers import BitsAndBytesConfig

    eight = spec.quantization == "bnb-8bit"
    config = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_8bit=eight, load_in_4bit=not eight, bnb_4bit_compute_dtype=torch.bfloat16
    )
    return {"quantization_config": config}


def _eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    configured = model.generation_config.eos_token_id if model.generation_config else None
    ids = configured if isinstance(configured, list) else [configured]
    return tuple({id for id in (*ids, tokenizer.eos_token_id) if id is not None})
