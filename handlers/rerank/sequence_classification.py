"""Any other cross-encoder that transformers has, padded to the longest pair of a pass."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from handlers.encoders.encoder import passes
from handlers.pretrained import load_pretrained
from handlers.rerank.model import RerankModel, pair_length
from handlers.rerank.pairs import Pair, sentence_pair
from handlers.spec import ModelSpec
from handlers.tokenization import unlimited


class PaddedCrossEncoder:
    """See handlers.rerank.model.Scorer."""

    def __init__(self, model: PreTrainedModel, pad: int, max_batch_tokens: int, *, typed: bool) -> None:
        """pad: the token id that fills up. max_batch_tokens: the most that pass at once, padding included.

        typed: query and document are sentences of different type.
        """
        self._model = model
        self._pad = pad
        self._max_batch_tokens = max_batch_tokens
        self._typed = typed

    @property
    def device(self) -> torch.device:
        return self._model.device

    @property
    def dtype(self) -> torch.dtype:
        return self._model.dtype

    def logits(self, pairs: Sequence[Pair]) -> torch.Tensor:
        return torch.cat([self._pass(batch) for batch in passes(pairs, self._max_batch_tokens)])

    def _pass(self, pairs: Sequence[Pair]) -> torch.Tensor:
        longest = len(pairs[0])
        rows = [[*pair.token_ids, *[self._pad] * (longest - len(pair))] for pair in pairs]
        places = torch.arange(longest, device=self.device)
        mask = places < torch.tensor([len(pair) for pair in pairs], device=self.device)[:, None]
        inputs = {"input_ids": torch.tensor(rows, device=self.device), "attention_mask": mask.long()}
        if self._typed:
            document_at = torch.tensor([pair.document_at for pair in pairs], device=self.device)
            inputs["token_type_ids"] = ((places >= document_at[:, None]) & mask).long()
        logits: torch.Tensor = self._model(**inputs).logits
        return logits[:, 0].float()


def load(spec: ModelSpec, folder: Path) -> RerankModel:
    """Raises ModelLoadError or ValueError."""
    model, tokenizer = load_pretrained(AutoModelForSequenceClassification, spec, folder)
    if (labels := model.config.num_labels) != 1:
        raise ValueError(f"it tells {labels} classes apart; a reranker has one")
    backend = unlimited(tokenizer.backend_tokenizer)
    layout, has_types = sentence_pair(backend)
    typed = has_types and "token_type_ids" in tokenizer.model_input_names
    pad = tokenizer.pad_token_id or 0
    scorer = PaddedCrossEncoder(model, pad, spec.limits.max_batch_cost, typed=typed)
    positions = getattr(model.config, "max_position_embeddings", None)
    return RerankModel(scorer, backend, layout, pair_length(spec, folder, positions), "cross-encoder")
