"""From a folder to a reranker, and from pairs to relevance."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError

from batching.errors import EngineFailed
from handlers.pretrained import cannot_load
from handlers.rerank.model import RerankModel
from handlers.rerank.pairs import Pair
from handlers.spec import ModelSpec


class Reranker:
    """Runs batches of pairs; lives in the worker thread."""

    def __init__(self, loaded: RerankModel) -> None:
        self._scorer = loaded.scorer
        self.device = loaded.scorer.device

    @torch.inference_mode()
    def score(self, pairs: Sequence[Pair]) -> Sequence[float | Exception]:
        """One logit a pair; a pair whose logit is not finite gets an error instead."""
        longest_first = sorted(range(len(pairs)), key=lambda i: len(pairs[i]), reverse=True)
        logits = self._scorer.logits([pairs[i] for i in longest_first]).cpu().numpy()
        answers: list[float | Exception] = [EngineFailed("the score is not finite")] * len(pairs)
        for i, logit in zip(longest_first, logits, strict=True):
            if np.isfinite(logit):
                answers[i] = float(logit)
        return answers


def load(spec: ModelSpec, folder: Path) -> RerankModel:
    """Raises ModelLoadError with one line that says what is wrong."""
    try:
        loaded = _load(spec, folder)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise cannot_load(spec, error) from error
    # What people write is text, also where it looks like a special token.
    loaded.tokenizer.encode_special_tokens = True
    return loaded


def _load(spec: ModelSpec, folder: Path) -> RerankModel:
    """What an engine does not need is not imported: transformers takes seconds."""
    from handlers.rerank import bert

    config = json.loads((folder / "config.json").read_text())
    architecture = (config.get("architectures") or ["none"])[0]
    if architecture.endswith("ForCausalLM"):
        from handlers.rerank import causal

        return causal.load(spec, folder, config)
    if not architecture.endswith("ForSequenceClassification"):
        raise ValueError(f"its architecture is {architecture}, and a reranker's is a sequence classifier's")
    if bert.supports(folder, config):
        return bert.load(spec, folder, config)
    from handlers.rerank import sequence_classification

    return sequence_classification.load(spec, folder)
