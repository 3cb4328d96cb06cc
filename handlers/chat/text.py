"""From token ids to text: as it streams, and token by token."""

from collections.abc import Collection
from functools import lru_cache

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from handlers.chat.sampling import Choice
from handlers.chat.types import Alternative, TokenLogprob


class Detokenizer:
    """Text of one answer as its tokens come: a character split over tokens is held back until it is whole.

    Special tokens are left out, but for those of `markers`: they tell reasoning and tool calls from text.
    """

    def __init__(self, tokenizer: Tokenizer, markers: Collection[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._markers = {tokenizer.token_to_id(marker): marker for marker in markers}
        self._stream = DecodeStream(skip_special_tokens=True)
        self._held: list[int] = []

    def feed(self, token: int) -> str:
        if (marker := self._markers.get(token)) is not None:
            return marker
        text: str | None = self._stream.step(self._tokenizer, token)
        if text is None:
            self._held.append(token)
            return ""
        self._held.clear()
        return text

    def flush(self) -> str:
        """What was held back when the answer ends there: a cut character, as its replacement."""
        text: str = self._tokenizer.decode(self._held, skip_special_tokens=True)
        return text


class TokenTexts:
    """What single tokens are, for log-probabilities. A token can be part of a character: then only bytes are exact."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.bytes = lru_cache(maxsize=65_536)(self._bytes)

    def logprob(self, choice: Choice) -> TokenLogprob:
        content = self.bytes(choice.token)
        top = tuple(self._alternative(token, logprob) for token, logprob in choice.top)
        return TokenLogprob(_text(content), content, choice.logprob, top)

    def _alternative(self, token: int, logprob: float) -> Alternative:
        content = self.bytes(token)
        return Alternative(_text(content), content, logprob)

    def _bytes(self, token: int) -> bytes:
        name: str = self._tokenizer.id_to_token(token) or ""
        if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
            return bytes([int(name[3:5], 16)])
        first: str = self._tokenizer.decode([token], skip_special_tokens=False)
        # Some decoders take the space from the first token of a text, so it is the second one that counts.
        text: str = self._tokenizer.decode([token, token], skip_special_tokens=False)[len(first) :]
        if "\ufffd" in text and all(character in _BYTE_OF for character in name):
            return bytes(_BYTE_OF[character] for character in name)
        return text.encode()


def _text(content: bytes) -> str:
    return content.decode(errors="replace")


def _byte_alphabet() -> dict[str, int]:
    """The printable characters that stand for bytes in byte-level vocabularies (Radford et al., GPT-2, 2019)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
