"""Cross-encoders of the BERT family (https://arxiv.org/abs/1901.04085), without padding.

The results are those of transformers' models for sequence classification.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from handlers.devices import pick_device, pick_dtype
from handlers.encoders import bert
from handlers.pretrained import log_placement
from handlers.rerank.model import RerankModel, pair_length
from handlers.rerank.pairs import Pair, sentence_pair
from handlers.spec import ModelSpec
from handlers.tokenization import load_tokenizer, read_tokenizer_config

# The two layers that turn the first token's state into the logit; a tanh is between them.
_HEADS = {
    "BertForSequenceClassification": ("pooler.dense", "classifier"),
    "RobertaForSequenceClassification": ("classifier.dense", "classifier.out_proj"),
    "XLMRobertaForSequenceClassification": ("classifier.dense", "classifier.out_proj"),
}


def supports(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether the model of this config.json, whose weights are in `folder`, can run here."""
    return config["architectures"][0] in _HEADS and bert.supports(folder, config)


class PackedCrossEncoder:
    """See handlers.rerank.model.Scorer."""

    def __init__(self, encoder: bert.Bert, weights: bert.Weights, head: tuple[str, str], *, typed: bool) -> None:
        """head: names of its layers. typed: query and document are sentences of different type."""
        dense, out = head
        self.device, self.dtype = encoder.device, encoder.dtype
        self._encoder = encoder
        self._dense, self._out = weights.linear(dense), weights.linear(out)
        self._typed = typed

    def logits(self, pairs: Sequence[Pair]) -> torch.Tensor:
        document_at = [pair.document_at for pair in pairs] if self._typed else None
        first = self._encoder.first_states([pair.token_ids for pair in pairs], document_at)
        return self._out(torch.tanh(self._dense(first)))[:, 0].float()


def load(spec: ModelSpec, folder: Path, config: Mapping[str, Any]) -> RerankModel:
    """A model that `supports` agreed to. Raises ModelLoadError, OSError, ValueError, KeyError or SafetensorError."""
    device = pick_device(spec.device)
    weights = bert.read_weights(folder, device, pick_dtype(device, spec.dtype))
    head = _HEADS[config["architectures"][0]]
    if (labels := len(weights[f"{head[1]}.weight"])) != 1:
        raise ValueError(f"it tells {labels} classes apart; a reranker has one")
    encoder = bert.Bert(weights, config, spec.limits.max_batch_cost)
    tokenizer = load_tokenizer(folder)
    layout, has_types = sentence_pair(tokenizer)
    typed = has_types and _reads_types(folder, config)
    scorer = PackedCrossEncoder(encoder, weights, head, typed=typed)
    log_placement(spec, scorer)
    return RerankModel(scorer, tokenizer, layout, pair_length(spec, folder, encoder.positions), "cross-encoder")


def _reads_types(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether the model was trained with the types of tokens; RoBERTa has one type only."""
    names = read_tokenizer_config(folder).get("model_input_names")
    return config["model_type"] == "bert" and (names is None or "token_type_ids" in names)
