"""The inputs of a request to what the model reads: prompts put before, tokens checked, special ones added, ends cut."""

from typing import TYPE_CHECKING

from handlers.embeddings.cache import cache_key, salted
from handlers.embeddings.openai_tokens import OpenAITokens
from handlers.embeddings.types import WHOLE, EmbeddingRequest, TokenIds
from handlers.embeddings.vectors import Input
from handlers.errors import InvalidRequest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

INPUTS_PER_TURN = 64
"""So many are tokenized at once: a long list does not keep everybody else's waiting."""

_MAX_CHARACTERS_PER_TOKEN = 128

_LANGCHAIN = "With LangChain's OpenAIEmbeddings, set check_embedding_ctx_length=False."


class Texts:
    """Tokenizes for one model. Called in a worker thread.

    model: its name, for messages. max_model_len: tokens of one input, special ones included. openai_tokens: None where
    OpenAI's vocabulary is not at hand.
    """

    def __init__(
        self, model: str, tokenizer: "Tokenizer", max_model_len: int, openai_tokens: OpenAITokens | None
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._max_model_len = max_model_len
        self._openai_tokens = openai_tokens
        self.opening, self.closing = _special_tokens(tokenizer)

    def read(self, request: EmbeddingRequest, prompt: str, start: int) -> list[Input]:
        """The inputs of one turn, from `start` on. prompt: goes before every text.

        Raises InvalidRequest naming the input at fault.
        """
        most = self._max_model_len if request.cut_to is None else self._cut_to(request.cut_to, prompt)
        token_ids = self._tokenize(request, prompt, start, most)
        salt = salted(request.cache_salt)
        inputs = []
        for index, ids in sorted(token_ids.items()):
            if len(ids) > most and request.cut_to is None:
                raise self._overlong(index, f"{len(ids)} tokens")
            read = ids if len(ids) <= most else [*ids[: most - len(self.closing)], *self.closing]
            inputs.append(Input(read, cache_key(read, salt)))
        return inputs

    def _tokenize(self, request: EmbeddingRequest, prompt: str, start: int, most: int) -> dict[int, TokenIds]:
        """Whole and with special tokens, by index. Of what is cut later no more is read than could matter."""
        texts: dict[int, str] = {}
        token_ids: dict[int, TokenIds] = {}
        for index, whole in enumerate(request.inputs[start : start + INPUTS_PER_TURN], start):
            item = whole if request.cut_to is None else whole[: most * _MAX_CHARACTERS_PER_TOKEN]
            self._refuse_endless(index, item)
            if isinstance(item, str):
                texts[index] = prompt + item
            elif request.openai_ids:
                texts[index] = prompt + self._openai_text(index, item, cut=request.cut_to is not None)
            else:
                token_ids[index] = self._with_special_tokens(index, item)
        encodings = self._tokenizer.encode_batch_fast(list(texts.values()))
        return token_ids | {index: encoding.ids for index, encoding in zip(texts, encodings, strict=True)}

    def _cut_to(self, tokens: int, prompt: str) -> int:
        """Raises InvalidRequest where the model takes less, or nothing of the input would be left."""
        if tokens == WHOLE:
            return self._max_model_len
        if tokens > self._max_model_len:
            reason = f"takes at most {self._max_model_len} tokens. Send -1 to have longer inputs cut to that"
            raise self._no_cut(tokens, reason)
        before = len(self._tokenizer.encode(prompt, add_special_tokens=False).ids) if prompt else 0
        needed = len(self.opening) + before + len(self.closing)
        if tokens <= needed:
            reason = f"puts {needed} tokens around every input. Send at least {needed + 1}"
            raise self._no_cut(tokens, reason)
        return tokens

    def _no_cut(self, tokens: int, reason: str) -> InvalidRequest:
        message = f"'truncate_prompt_tokens' cannot be {tokens}: `{self._model}` {reason}."
        return InvalidRequest(message, "truncate_prompt_tokens", "invalid_value")

    def _refuse_endless(self, index: int, item: str | TokenIds) -> None:
        # Far longer than any text of so many tokens; a tokenizer takes seconds for a few megabytes.
        if len(item) > self._max_model_len * _MAX_CHARACTERS_PER_TOKEN:
            raise self._overlong(index, f"{len(item)} {'characters' if isinstance(item, str) else 'tokens'}")

    def _overlong(self, index: int, length: str) -> InvalidRequest:
        return InvalidRequest(
            f"Input {index} is {length} long, and `{self._model}` takes at most {self._max_model_len} tokens. "
            "Split it into shorter texts, or send truncate_prompt_tokens=-1 to have longer ones cut.",
            f"input[{index}]",
            "context_length_exceeded",
        )

    def _openai_text(self, index: int, ids: TokenIds, *, cut: bool) -> str:
        if self._openai_tokens is None:
            raise InvalidRequest(
                f"Token ids of OpenAI's tokenizer cannot be read here. Send text, or token ids of `{self._model}` "
                f"under that name. {_LANGCHAIN}",
                f"input[{index}]",
                "invalid_value",
            )
        try:
            text = self._openai_tokens.decode(ids)
        except KeyError as unknown:
            raise InvalidRequest(
                f"Input {index} has a token id that OpenAI's tokenizer does not know ({unknown}). Send text, or token "
                f"ids of the model's own tokenizer under its own name, `{self._model}`.",
                f"input[{index}]",
                "invalid_value",
            ) from None
        if cut:
            return text[: self._max_model_len * _MAX_CHARACTERS_PER_TOKEN]
        self._refuse_endless(index, text)
        return text

    def _with_special_tokens(self, index: int, ids: TokenIds) -> TokenIds:
        """Token arrays are ids of the model's own tokenizer, without its special tokens, which are added here."""
        vocabulary = self._tokenizer.get_vocab_size()
        if any(not 0 <= id < vocabulary for id in ids):
            raise InvalidRequest(
                f"Input {index} has token ids that `{self._model}` does not know (its vocabulary ends at "
                f"{vocabulary - 1}). Ids of another tokenizer mean other words here: send text instead. {_LANGCHAIN}",
                f"input[{index}]",
                "invalid_value",
            )
        return [*self.opening, *ids, *self.closing]


def _special_tokens(tokenizer: "Tokenizer") -> tuple[TokenIds, TokenIds]:
    """What the tokenizer puts before and after a text, found by tokenizing one with and without."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a").ids
    start = next(i for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare)
    return whole[:start], whole[start + len(bare) :]
