"""A causal language model ready to chat."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jinja2 import TemplateError
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from handlers.chat import gguf
from handlers.chat.llama import LlamaConfig, LlamaModel
from handlers.chat.packed import PackedModel
from handlers.devices import pick_device, pick_dtype
from handlers.errors import ModelLoadError
from handlers.linear import ALL_ROWS, rows_faster_in_int8
from handlers.pretrained import cannot_load, max_model_len
from handlers.spec import SPLIT, ModelSpec
from handlers.tokenization import load_tokenizer

if TYPE_CHECKING:
    from handlers.chat.vision import ImageReader

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ChatModel:
    """chat_template: Jinja. special_tokens: what the template may name, such as `bos_token`.

    max_model_len: tokens of context, prompt and answer together. eos_token_ids: any of them ends an answer.
    reader: of images, if the model has one.
    """

    model: PackedModel
    tokenizer: Tokenizer
    chat_template: str
    special_tokens: Mapping[str, str]
    eos_token_ids: tuple[int, ...]
    max_model_len: int
    reader: "ImageReader | None" = None


def load(spec: ModelSpec, folder: Path) -> ChatModel:
    """Raises ModelLoadError with one line that names the model and what is wrong."""
    folder = gguf.prepare(folder)
    try:
        config = _read_json(folder / "config.json")
        tokenizer_config = _read_json(folder / "tokenizer_config.json")
        tokenizer = load_tokenizer(folder)
        special_tokens = _special_tokens(tokenizer_config)
        template = _chat_template(folder, tokenizer_config)
        if template is None:
            raise ModelLoadError(f"model {spec.id}: it has no chat template; take its instruct version")
        model, reader = _load_with_reader(spec, folder, config, template, special_tokens)
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise cannot_load(spec, error) from error
    text_config = config.get("text_config", config)
    positions = text_config.get("max_position_embeddings") or text_config.get("n_positions")
    return ChatModel(
        model=model,
        tokenizer=tokenizer,
        chat_template=template,
        special_tokens=special_tokens,
        eos_token_ids=_eos_token_ids(folder, config, tokenizer, special_tokens),
        max_model_len=max_model_len(spec, None, positions),
        reader=reader,
    )


def _load_with_reader(
    spec: ModelSpec, folder: Path, config: Mapping[str, Any], template: str, special_tokens: Mapping[str, str]
) -> "tuple[PackedModel, ImageReader | None]":
    """A model that reads images comes with what makes tokens of them."""
    if "vision_config" in config:
        from handlers.chat.vision import load_image_text, reads_images

        if reads_images(config):
            text = _with_an_image(spec, template, special_tokens) if spec.images else None
            return load_image_text(spec, folder, text)
    return load_model(spec, folder, config), None


def load_model(spec: ModelSpec, folder: Path, config: Mapping[str, Any], *, steps: bool = True) -> PackedModel:
    """The faster code for the architectures that it knows, transformers' for all others and for quantized weights.

    Only transformers' can be split over several devices. steps: it will generate; without, prompts are all it reads,
    and weights for few rows would be of no use.
    """
    llama = LlamaConfig.read(config)
    is_quantized = spec.quantization != "none" or "quantization_config" in config
    if llama is None or is_quantized or spec.device == SPLIT:
        from handlers.chat.general import load_general

        return load_general(spec, folder)
    device = pick_device(spec.device)
    dtype = pick_dtype(device, spec.dtype)
    int8_rows = rows_faster_in_int8(dtype) if steps and device == "cpu" and spec.dtype == "auto" else 0
    model = LlamaModel(llama, Checkpoint(folder).read, dtype, torch.device(device), int8_rows=int8_rows)
    weights = ", weights of 8 bits" if int8_rows else ""
    weights += f" for up to {int8_rows} tokens at once" if 0 < int8_rows < ALL_ROWS else ""
    logger.info("%s runs on %s in %s%s", spec.id, device, str(dtype).removeprefix("torch."), weights)
    return model


def _with_an_image(spec: ModelSpec, template: str, special_tokens: Mapping[str, str]) -> str:
    """What the template makes of a message with an image."""
    from handlers.chat.prompt import render_messages

    content = [{"type": "image"}, {"type": "text", "text": "What is to be seen here?"}]
    try:
        return render_messages(
            [{"role": "user", "content": content}], template, add_generation_prompt=True, **special_tokens
        )
    except (TemplateError, ValueError, TypeError) as error:
        raise ModelLoadError(
            f"model {spec.id}: its chat template fails on images; `images = false` does without"
        ) from error


class Checkpoint:
    """The tensors of a folder of safetensors files, by name. Other weight files can run code when they are opened."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError if there is none, ValueError if the index is broken."""
        index = folder / "model.safetensors.index.json"
        names = sorted(set(_read_json(index)["weight_map"].values())) if index.exists() else ["model.safetensors"]
        self._files = [safe_open(folder / name, framework="pt") for name in names]
        self._file_of = {tensor: file for file in self._files for tensor in file.keys()}  # type: ignore[no-untyped-call]

    def read(self, name: str) -> torch.Tensor:
        """A copy: what is mapped from the file counts as memory of this process. Raises KeyError."""
        tensor: torch.Tensor = self._file_of[name].get_tensor(name)  # type: ignore[no-untyped-call]
        return tensor.clone()


def _read_json(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _chat_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    """The default one of several: those for tools or retrieval are for other uses."""
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):
        return {entry["name"]: entry["template"] for entry in template}.get("default")
    return template


def _special_tokens(tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    tokens = {name: tokenizer_config.get(name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    texts = {name: token["content"] if isinstance(token, dict) else token for name, token in tokens.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _eos_token_ids(
    folder: Path, config: Mapping[str, Any], tokenizer: Tokenizer, special_tokens: Mapping[str, str]
) -> tuple[int, ...]:
    generation = folder / "generation_config.json"
    configured = (_read_json(generation) if generation.exists() else config).get("eos_token_id")
    ids = configured if isinstance(configured, list) else [configured]
    if "eos_token" in special_tokens:
        ids = [*ids, tokenizer.token_to_id(special_tokens["eos_token"])]
    return tuple(sorted({id for id in ids if id is not None}))
