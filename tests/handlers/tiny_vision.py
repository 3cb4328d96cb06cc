"""Tiny image-text models with random weights, and the processors that belong to them, saved as real ones are."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    CLIPVisionConfig,
    Gemma3Config,
    Idefics3Config,
    LlamaConfig,
    LlavaConfig,
    PreTrainedModel,
    Qwen2VLConfig,
    Qwen3VLConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.handlers.tiny import save_chat_model

TEMPLATE = (
    "{{% for message in messages %}}<|{{{{ message['role'] }}}}|>"
    "{{% if message['content'] is string %}}{{{{ message['content'] }}}}{{% else %}}"
    "{{% for part in message['content'] %}}"
    "{{% if part['type'] == 'image' %}}{mark}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}{{% endfor %}}{{% endif %}}"
    "<|end|>{{% endfor %}}{{% if add_generation_prompt %}}<|assistant|>{{% endif %}}"
)
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
KINDS = ("llava", "idefics3", "qwen2_vl")
_MARKS = {
    "llava": ["<image>"],
    "idefics3": ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"],
    "qwen2_vl": ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"],
    "qwen3_vl": ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"],
    "gemma3": ["<boi>", "<eoi>", "<img>"],
}
_WRITTEN = {
    "llava": "<image>",
    "idefics3": "<image>",
    "qwen2_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "qwen3_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "gemma3": "<boi>",
}


def save_vision_model(folder: Path, kind: str = "llava", **changes: Any) -> PreTrainedModel:
    """The model that was saved, with transformers' own attention."""
    save_chat_model(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(_MARKS[kind], special_tokens=True)
    tokenizer.chat_template = changes.pop("template", TEMPLATE.format(mark=_WRITTEN[kind]))
    tokenizer.save_pretrained(folder)
    ids = dict(zip(_MARKS[kind], tokenizer.convert_tokens_to_ids(_MARKS[kind]), strict=True))
    text = {**TEXT, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    torch.manual_seed(0)
    config = _CONFIGS[kind](folder, text, ids)
    for name, value in changes.items():
        setattr(config, name, value)
    from_config: Any = AutoModelForImageTextToText.from_config
    model: PreTrainedModel = from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    model.save_pretrained(folder)
    return model


def _llava(folder: Path, text: dict[str, Any], ids: dict[str, int]) -> Any:
    size = {"height": 16, "width": 16}
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=size).save_pretrained(folder)
    (folder / "processor_config.json").write_text(
        '{"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}'
    )
    vision = CLIPVisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**text),
        image_token_index=ids["<image>"],
        image_seq_length=16,
        vision_feature_layer=-1,
    )


def _idefics3(folder: Path, text: dict[str, Any], ids: dict[str, int]) -> Any:
    Idefics3ImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 16}).save_pretrained(folder)
    (folder / "processor_config.json").write_text('{"image_seq_len": 4}')
    vision = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return Idefics3Config(
        image_token_id=ids["<image>"],
        vision_config={**vision, "image_size": 16, "patch_size": 4},
        text_config={**text, "model_type": "llama"},
        scale_factor=2,
    )


def _qwen2_vl(folder: Path, text: dict[str, Any], ids: dict[str, int]) -> Any:
    Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, min_pixels=64, max_pixels=1024).save_pretrained(folder)
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10_000.0}
    vision = {"depth": 2, "embed_dim": 24, "hidden_size": 32, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2}
    return Qwen2VLConfig(
        text_config={**text, "rope_parameters": rope},
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )


def _qwen3_vl(folder: Path, text: dict[str, Any], ids: dict[str, int]) -> Any:
    Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, min_pixels=64, max_pixels=1024).save_pretrained(folder)
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10_000.0, "mrope_interleaved": True}
    vision = {"depth": 2, "hidden_size": 24, "intermediate_size": 32, "num_heads": 2, "patch_size": 4}
    return Qwen3VLConfig(
        text_config={**text, "head_dim": 8, "rope_parameters": rope},
        vision_config={**vision, "out_hidden_size": 32, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )


def _gemma3(folder: Path, text: dict[str, Any], ids: dict[str, int]) -> Any:
    Gemma3ImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    (folder / "processor_config.json").write_text('{"image_seq_length": 4}')
    named = json.loads((folder / "tokenizer_config.json").read_text())
    named |= {"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<img>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    vision = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return Gemma3Config(
        text_config={**text, "head_dim": 8, "sliding_window": 64},
        vision_config={**vision, "image_size": 16, "patch_size": 4},
        mm_tokens_per_image=4,
        image_token_index=ids["<img>"],
        boi_token_index=ids["<boi>"],
        eoi_token_index=ids["<eoi>"],
    )


_CONFIGS = {
    "llava": _llava,
    "idefics3": _idefics3,
    "qwen2_vl": _qwen2_vl,
    "qwen3_vl": _qwen3_vl,
    "gemma3": _gemma3,
}
