"""The BERT family (https://arxiv.org/abs/1810.04805) without padding.

The tokens of all texts stand one after the other, [tokens, hidden], and pass through every layer so; only attention
looks at texts, at all of equal length together. The results are those of transformers' BertModel.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from handlers.encoders.encoder import Run, TokenIds, passes, runs
from handlers.linear import ACTIVATIONS, Linear

_WEIGHTS = "model.safetensors"
_FAMILY = ("bert", "roberta", "xlm-roberta")


def supports(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether the model of this config.json, whose weights are in `folder`, can run here."""
    return (
        config.get("model_type") in _FAMILY
        and config.get("position_embedding_type", "absolute") == "absolute"
        and config.get("hidden_act") in ACTIVATIONS
        and not config.get("is_decoder", False)
        and (folder / _WEIGHTS).is_file()
    )


class Weights:
    """The tensors of a checkpoint by the names that BertModel has for them, on one device and in one dtype."""

    def __init__(self, tensors: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype) -> None:
        self._tensors = {_modern(name): tensor for name, tensor in tensors.items()}
        self.device = device
        self.dtype = dtype

    def __getitem__(self, name: str) -> Tensor:
        """Raises ValueError for a name that is not there."""
        if name not in self._tensors:
            raise ValueError(f"{_WEIGHTS} has no {name}")
        return self._tensors[name].to(self.device, self.dtype)

    def linear(self, *names: str, activation: str = "none") -> Linear:
        """One layer that gives the outputs of the named ones side by side."""
        weight = torch.cat([self[f"{name}.weight"] for name in names])
        return Linear(weight, torch.cat([self[f"{name}.bias"] for name in names]), activation)


class LayerNorm:
    def __init__(self, weights: Weights, name: str, eps: float) -> None:
        self._weight, self._bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        self._eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self._weight.shape, self._weight, self._bias, self._eps)


class Layer:
    """Attention within each text, then a feed-forward network for each token."""

    def __init__(self, weights: Weights, name: str, config: Mapping[str, Any]) -> None:
        attention, eps = f"{name}.attention", float(config["layer_norm_eps"])
        self._heads = int(config["num_attention_heads"])
        self._query_key_value = weights.linear(*(f"{attention}.self.{part}" for part in ("query", "key", "value")))
        self._attended = weights.linear(f"{attention}.output.dense")
        self._attended_norm = LayerNorm(weights, f"{attention}.output.LayerNorm", eps)
        self._up = weights.linear(f"{name}.intermediate.dense", activation=config["hidden_act"])
        self._down = weights.linear(f"{name}.output.dense")
        self._norm = LayerNorm(weights, f"{name}.output.LayerNorm", eps)

    def __call__(self, x: Tensor, texts: Sequence[Run]) -> Tensor:
        """[tokens, hidden] to the same."""
        return self._feed_forward(_attention(self._query_key_value(x), texts, self._heads), x)

    def first(self, x: Tensor, texts: Sequence[Run]) -> Tensor:
        """[tokens, hidden] to [texts, hidden]: the same for the first token of each text only."""
        attended = _attention(self._query_key_value(x), texts, self._heads, queries=1)
        starts = accumulate((run.tokens for run in texts for _ in range(run.texts)), initial=0)
        return self._feed_forward(attended, x[list(starts)[:-1]])

    def _feed_forward(self, attended: Tensor, x: Tensor) -> Tensor:
        x = self._attended_norm(self._attended(attended) + x)
        return self._norm(self._down(self._up(x)) + x)


class Bert:
    """An Encoder; see handlers.encoders.encoder."""

    def __init__(self, weights: Weights, config: Mapping[str, Any], max_batch_tokens: int) -> None:
        """config: as in config.json. max_batch_tokens: the most that pass at once."""
        config = {"layer_norm_eps": 1e-12, **config}
        self.device, self.dtype = weights.device, weights.dtype
        self._words = weights["embeddings.word_embeddings.weight"]
        self._sentences = weights["embeddings.token_type_embeddings.weight"]
        self._places = _places(weights, config) + self._sentences[0]
        self._norm = LayerNorm(weights, "embeddings.LayerNorm", float(config["layer_norm_eps"]))
        layers = range(int(config["num_hidden_layers"]))
        self._layers = [Layer(weights, f"encoder.layer.{index}", config) for index in layers]
        self._max_batch_tokens = max_batch_tokens
        self.hidden_size = int(config["hidden_size"])
        self.positions: int | None = len(self._places)

    def encode(self, inputs: Sequence[TokenIds]) -> Iterator[Tensor]:
        for batch in passes(inputs, self._max_batch_tokens):
            yield from self._hidden_states(batch)

    def first_states(self, inputs: Sequence[TokenIds], second_at: Sequence[int] | None = None) -> Tensor:
        """[inputs, hidden]: the last hidden states of first tokens, which classifiers look at; the others are left out.

        inputs: sorted by length, longest first. second_at: where in each input its second sentence begins; without it
        every input is one sentence.
        """
        states, start = [], 0
        for batch in passes(inputs, self._max_batch_tokens):
            stop = start + len(batch)
            states.append(self._first_states(batch, None if second_at is None else second_at[start:stop]))
            start = stop
        return torch.cat(states)

    def _hidden_states(self, inputs: Sequence[TokenIds]) -> Iterator[Tensor]:
        texts = runs(inputs)
        x = self._embed(inputs, texts)
        for layer in self._layers:
            x = layer(x, texts)
        for block, run in zip(_blocks(x, texts), texts, strict=True):
            yield block.view(*run, self.hidden_size)

    def _first_states(self, inputs: Sequence[TokenIds], second_at: Sequence[int] | None) -> Tensor:
        texts = runs(inputs)
        x = self._embed(inputs, texts, second_at)
        for layer in self._layers[:-1]:
            x = layer(x, texts)
        return self._layers[-1].first(x, texts)

    def _embed(
        self, inputs: Sequence[TokenIds], texts: Sequence[Run], second_at: Sequence[int] | None = None
    ) -> Tensor:
        """[tokens, hidden]: what each token is, where it stands in its text, and in which sentence."""
        token_ids = torch.tensor(list(chain.from_iterable(inputs)), device=self.device)
        x = torch.cat([self._places[: run.tokens].repeat(run.texts, 1) for run in texts])
        x += F.embedding(token_ids, self._words)
        if second_at is not None:
            in_second = [
                place >= second for ids, second in zip(inputs, second_at, strict=True) for place in range(len(ids))
            ]
            x[torch.tensor(in_second, device=self.device)] += self._sentences[1] - self._sentences[0]
        return self._norm(x)


def read_weights(folder: Path, device: str, dtype: torch.dtype) -> Weights:
    """Of a model that `supports` agreed to. Raises OSError or SafetensorError."""
    return Weights(load_file(folder / _WEIGHTS), torch.device(device), dtype)


def _attention(query_key_value: Tensor, texts: Sequence[Run], heads: int, queries: int | None = None) -> Tensor:
    """[tokens, 3 * hidden] to [tokens, hidden]; a token looks at those of its own text.

    queries: so many of each text's first tokens are wanted; without it, all.
    """
    hidden = query_key_value.shape[1] // 3
    attended = []
    for block, run in zip(_blocks(query_key_value, texts), texts, strict=True):
        query, key, value = block.view(*run, 3, heads, hidden // heads).permute(2, 0, 3, 1, 4)
        heads_side_by_side = F.scaled_dot_product_attention(query[:, :, :queries], key, value).transpose(1, 2)
        attended.append(heads_side_by_side.reshape(-1, hidden))
    return torch.cat(attended)


def _blocks(x: Tensor, texts: Sequence[Run]) -> Sequence[Tensor]:
    """The rows of each run."""
    return torch.split_with_sizes(x, [run.texts * run.tokens for run in texts])


def _places(weights: Weights, config: Mapping[str, Any]) -> Tensor:
    """[positions, hidden]: what is added to the token that stands there."""
    # RoBERTa numbers its positions from the padding token's id onwards, which itself stays free.
    first = 0 if config["model_type"] == "bert" else int(config["pad_token_id"]) + 1
    return weights["embeddings.position_embeddings.weight"][first:]


def _modern(name: str) -> str:
    """A tensor's name in a checkpoint of any age, and of a model with a head, as BertModel has it."""
    name = name.removeprefix("bert.").removeprefix("roberta.")
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
