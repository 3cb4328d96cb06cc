"""Language models that answer yes or no, as Qwen3-Reranker does (https://arxiv.org/abs/2506.05176).

A pair becomes a prompt, and the relevance is how much likelier "yes" is than "no" as its next token. The prompt is the
one that the model was trained with; a template in the model's folder is not looked at.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from handlers.chat.loading import load_model
from handlers.chat.packed import Chunk, PackedBatch, PackedModel
from handlers.encoders.encoder import passes
from handlers.pretrained import max_model_len
from handlers.rerank.model import RerankModel
from handlers.rerank.pairs import Layout, Pair
from handlers.spec import ModelSpec
from handlers.tokenization import load_tokenizer

_OPENING = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
# The space before a document belongs to its first word.
_QUERY = "<Instruct>: {instruction}\n<Query>: {query}\n<Document>:"
_LEAD = " "
_CLOSING = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
_MARKS = ("<|im_start|>", "<|im_end|>", "yes", "no")


class YesNoModel:
    """See handlers.rerank.model.Scorer."""

    def __init__(self, model: PackedModel, yes: int, no: int, max_batch_tokens: int) -> None:
        """yes, no: their token ids. max_batch_tokens: the most that pass at once."""
        self.device, self.dtype = model.device, model.kv_shape.dtype
        self._model = model
        self._yes, self._no = yes, no
        self._max_batch_tokens = max_batch_tokens

    def logits(self, pairs: Sequence[Pair]) -> torch.Tensor:
        """Of "yes", less that of "no": a softmax over the two is the sigmoid of this."""
        return torch.cat([self._pass(batch) for batch in passes(pairs, self._max_batch_tokens)])

    def _pass(self, pairs: Sequence[Pair]) -> torch.Tensor:
        logits = self._model.forward(self._packed([pair.token_ids for pair in pairs]))
        return logits[:, self._yes].float() - logits[:, self._no].float()

    def _packed(self, prompts: Sequence[Sequence[int]]) -> PackedBatch:
        stops = list(accumulate(map(len, prompts)))
        starts = [0, *stops[:-1]]
        positions = torch.cat([torch.arange(len(prompt), device=self.device) for prompt in prompts])
        return PackedBatch(
            torch.tensor(list(chain.from_iterable(prompts)), device=self.device),
            positions,
            torch.tensor(stops, device=self.device) - 1,
            decodes=[],
            chunks=[
                Chunk(self._states(stop - start), start, stop, 0) for start, stop in zip(starts, stops, strict=True)
            ],
        )

    def _states(self, tokens: int) -> torch.Tensor:
        """Room for the keys and values of one layer, which all layers use in turn: no token comes after these."""
        shape = self._model.kv_shape
        size = (2, 1, shape.heads, tokens, shape.head_dim)
        return torch.empty(size, dtype=shape.dtype, device=shape.device).expand(-1, shape.layers, -1, -1, -1)


def load(spec: ModelSpec, folder: Path, config: Mapping[str, Any]) -> RerankModel:
    """Raises ModelLoadError, OSError, ValueError, KeyError or SafetensorError."""
    tokenizer = load_tokenizer(folder)
    vocabulary = tokenizer.get_vocab()
    if missing := [mark for mark in _MARKS if mark not in vocabulary]:
        raise ValueError(f"it has no token {', '.join(missing)}, so it is not of Qwen3-Reranker's kind")
    scorer = YesNoModel(
        load_model(spec, folder, config, steps=False), vocabulary["yes"], vocabulary["no"], spec.limits.max_batch_cost
    )
    length = max_model_len(spec, None, config.get("max_position_embeddings"))
    return RerankModel(scorer, tokenizer, _layout(tokenizer), length, "yes or no")


def _layout(tokenizer: Tokenizer) -> Layout:
    opening, closing = (tokenizer.encode(text, add_special_tokens=False).ids for text in (_OPENING, _CLOSING))
    return Layout(opening, [], closing, _QUERY, _LEAD, _INSTRUCTION)
