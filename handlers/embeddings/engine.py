"""Sentence vectors with transformers: any encoder in the sentence-transformers folder layout."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerFast

from batching.errors import EngineFailed
from handlers.pretrained import cannot_load, load_pretrained, max_model_len
from handlers.spec import ModelSpec

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class EmbeddingModel:
    """max_model_len: tokens of one input, special ones included. pooling: mean, cls or last."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    max_model_len: int
    pooling: str
    normalize: bool

    @property
    def dimensions(self) -> int:
        return int(self.model.config.hidden_size)


class TransformersEmbedder:
    """Runs batches of token ids; lives in the worker thread."""

    def __init__(self, loaded: EmbeddingModel, max_batch_tokens: int) -> None:
        self._loaded = loaded
        self._max_batch_tokens = max_batch_tokens
        self._pad = loaded.tokenizer.pad_token_id or 0

    @torch.inference_mode()
    def embed(self, inputs: Sequence[Sequence[int]]) -> Sequence[Vector | Exception]:
        """One vector an input, float32 [dimensions]; an input whose vector is not finite gets an error instead."""
        answers: list[Vector | Exception] = [EngineFailed()] * len(inputs)
        for group in _by_length(inputs, self._max_batch_tokens):
            vectors = self._forward([inputs[i] for i in group])
            for i, vector in zip(group, vectors, strict=True):
                answers[i] = vector if np.isfinite(vector).all() else EngineFailed("the vector is not finite")
        return answers

    def _forward(self, inputs: Sequence[Sequence[int]]) -> Vector:
        device = self._loaded.model.device
        longest = max(map(len, inputs))
        token_ids = torch.tensor([[*ids, *[self._pad] * (longest - len(ids))] for ids in inputs], device=device)
        lengths = torch.tensor([len(ids) for ids in inputs], device=device)
        mask = torch.arange(longest, device=device) < lengths[:, None]
        hidden = self._loaded.model(input_ids=token_ids, attention_mask=mask.long()).last_hidden_state
        pooled = _pool(hidden.float(), mask, self._loaded.pooling)
        if self._loaded.normalize:
            pooled = torch.nn.functional.normalize(pooled, dim=-1)
        return pooled.cpu().numpy()


def load(spec: ModelSpec, folder: Path) -> EmbeddingModel:
    """Raises ModelLoadError with one line that names the model and what is wrong."""
    model, tokenizer = load_pretrained(AutoModel, spec, folder)
    try:
        pooling, normalize = _sentence_config(folder)
    except (OSError, ValueError, KeyError) as error:
        raise cannot_load(spec, error) from error
    length = max_model_len(spec, _trained_length(folder), int(model.config.max_position_embeddings))
    return EmbeddingModel(model, tokenizer, length, pooling, normalize)


def _sentence_config(folder: Path) -> tuple[str, bool]:
    """Pooling and normalisation as the folder's modules.json states them; mean and normalised without one."""
    modules = folder / "modules.json"
    if not modules.exists():
        return "mean", True
    types = {module["type"].rsplit(".", 1)[-1]: module["path"] for module in json.loads(modules.read_text())}
    if unknown := set(types) - {"Transformer", "Pooling", "Normalize"}:
        raise ValueError(f"modules.json asks for {', '.join(sorted(unknown))}, which is not supported")
    pooling = json.loads((folder / types["Pooling"] / "config.json").read_text())
    modes = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "last"}
    wanted = [name for name, on in pooling.items() if name.startswith("pooling_mode_") and on]
    if len(wanted) != 1 or wanted[0] not in modes:
        raise ValueError(f"pooling {', '.join(wanted)} is not supported")
    return modes[wanted[0]], "Normalize" in types


def _trained_length(folder: Path) -> int | None:
    """The length that sentence-transformers cuts at: the model saw nothing longer."""
    config = folder / "sentence_bert_config.json"
    return json.loads(config.read_text()).get("max_seq_length") if config.exists() else None


def _pool(hidden: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """[inputs, tokens, dimensions] to [inputs, dimensions]; padding, where mask is False, counts for nothing."""
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(dim=1) - 1]
    weights = mask[..., None].float()
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


def _by_length(inputs: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
    """Indices in groups of similar length, each of at most `max_tokens` with its padding."""
    groups: list[list[int]] = []
    for i in sorted(range(len(inputs)), key=lambda i: len(inputs[i]), reverse=True):
        if groups and len(inputs[groups[-1][0]]) * (len(groups[-1]) + 1) <= max_tokens:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups
