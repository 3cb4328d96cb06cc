"""Any other encoder that transformers has, padded to the longest text of a pass."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModel, PreTrainedModel

from handlers.encoders.encoder import TokenIds, passes, runs
from handlers.pretrained import load_pretrained
from handlers.spec import ModelSpec
from handlers.tokenization import unlimited


class TransformersModel:
    """An Encoder; see handlers.encoders.encoder."""

    def __init__(self, model: PreTrainedModel, pad: int, max_batch_tokens: int) -> None:
        """pad: the token id that fills up. max_batch_tokens: the most that pass at once, padding included."""
        self._model = model
        self._pad = pad
        self._max_batch_tokens = max_batch_tokens
        self.hidden_size = int(model.config.hidden_size)
        self.positions: int | None = getattr(model.config, "max_position_embeddings", None)

    @property
    def device(self) -> torch.device:
        return self._model.device

    @property
    def dtype(self) -> torch.dtype:
        return self._model.dtype

    def encode(self, inputs: Sequence[TokenIds]) -> Iterator[torch.Tensor]:
        for batch in passes(inputs, self._max_batch_tokens):
            hidden, start = self._hidden_states(batch), 0
            for run in runs(batch):
                yield hidden[start : start + run.texts, : run.tokens]
                start += run.texts

    def _hidden_states(self, inputs: Sequence[TokenIds]) -> torch.Tensor:
        """[texts, tokens of the longest, hidden]."""
        longest = len(inputs[0])
        token_ids = torch.tensor([[*ids, *[self._pad] * (longest - len(ids))] for ids in inputs], device=self.device)
        lengths = torch.tensor([len(ids) for ids in inputs], device=self.device)
        mask = torch.arange(longest, device=self.device) < lengths[:, None]
        hidden: torch.Tensor = self._model(input_ids=token_ids, attention_mask=mask.long()).last_hidden_state
        return hidden


def load(spec: ModelSpec, folder: Path, max_batch_tokens: int) -> tuple[TransformersModel, Tokenizer]:
    """Raises ModelLoadError with one line that names the model and what is wrong."""
    model, tokenizer = load_pretrained(AutoModel, spec, folder)
    # As transformers corrects it for models whose tokenizer.json is known to be wrong.
    backend = unlimited(tokenizer.backend_tokenizer)
    return TransformersModel(model, tokenizer.pad_token_id or 0, max_batch_tokens), backend
