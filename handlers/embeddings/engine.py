"""Sentence vectors: any encoder in the sentence-transformers folder layout."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer

from batching.errors import EngineFailed
from handlers.devices import pick_device, pick_dtype
from handlers.embeddings.dimensions import Dimensions, Vector, read_dimensions
from handlers.embeddings.pooling import Pooling, load_pooling
from handlers.embeddings.prompts import Prompts, load_prompts
from handlers.encoders import bert
from handlers.encoders.encoder import Encoder, TokenIds
from handlers.pretrained import cannot_load, log_placement, max_model_len
from handlers.spec import ModelSpec
from handlers.tokenization import load_tokenizer


@dataclass(frozen=True, slots=True)
class EmbeddingModel:
    """max_model_len: tokens of one input, special ones included."""

    encoder: Encoder
    tokenizer: Tokenizer
    pooling: Pooling
    dimensions: Dimensions
    prompts: Prompts
    max_model_len: int


class Embedder:
    """Runs batches of token ids; lives in the worker thread."""

    def __init__(self, loaded: EmbeddingModel) -> None:
        self._encoder = loaded.encoder
        self._pooling = loaded.pooling

    @torch.inference_mode()
    def embed(self, inputs: Sequence[TokenIds]) -> Sequence[Vector | Exception]:
        """One vector an input, float32 [dimensions], before a last normalisation.

        An input whose vector is not finite gets an error instead.
        """
        longest_first = sorted(range(len(inputs)), key=lambda i: len(inputs[i]), reverse=True)
        runs = self._encoder.encode([inputs[i] for i in longest_first])
        vectors = torch.cat([self._pooling(hidden) for hidden in runs]).cpu().numpy()
        answers: list[Vector | Exception] = [EngineFailed("the vector is not finite")] * len(inputs)
        for i, vector, finite in zip(longest_first, vectors, np.isfinite(vectors).all(axis=1), strict=True):
            if finite:
                answers[i] = vector
        return answers


def load(spec: ModelSpec, folder: Path) -> EmbeddingModel:
    """Raises ModelLoadError with one line that says what is wrong."""
    try:
        config = json.loads((folder / "config.json").read_text())
        encoder, tokenizer = _open(spec, folder, config)
        pooling = load_pooling(folder, encoder.device)
        native = pooling.dimensions(encoder.hidden_size, encoder.device)
        dimensions = read_dimensions(spec, config, native)
        prompts = load_prompts(spec.id, folder)
        trained = _trained_length(folder)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise cannot_load(spec, error) from error
    longest = max_model_len(spec, trained, encoder.positions)
    return EmbeddingModel(encoder, tokenizer, pooling, dimensions, prompts, longest)


def _open(spec: ModelSpec, folder: Path, config: Mapping[str, Any]) -> tuple[Encoder, Tokenizer]:
    """The BERT family runs here; transformers, which takes seconds to import, runs the rest."""
    if not bert.supports(folder, config):
        from handlers.embeddings import transformers_model

        return transformers_model.load(spec, folder, spec.limits.max_batch_cost)
    device = pick_device(spec.device)
    weights = bert.read_weights(folder, device, pick_dtype(device, spec.dtype))
    encoder = bert.Bert(weights, config, spec.limits.max_batch_cost)
    log_placement(spec, encoder)
    return encoder, load_tokenizer(folder)


def _trained_length(folder: Path) -> int | None:
    """The length that sentence-transformers cuts at: the model saw nothing longer."""
    config = folder / "sentence_bert_config.json"
    return json.loads(config.read_text()).get("max_seq_length") if config.exists() else None
