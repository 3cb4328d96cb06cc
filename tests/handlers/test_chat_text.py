"""From token ids to text, as it streams and token by token."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from handlers.chat.sampling import Choice
from handlers.chat.text import Detokenizer, TokenTexts
from handlers.chat.types import Alternative


def bytes_tokenizer() -> Tokenizer:
    """As GPT-2 has it: every byte is a character of the vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    return tokenizer


def fallback_tokenizer() -> Tokenizer:
    """As Llama 2 has it: words with a mark for the space before them, and bytes by name for all else."""
    words = ["<unk>", "</s>", "▁Hello", "▁world", "!", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    return tokenizer


BYTES, FALLBACK = bytes_tokenizer(), fallback_tokenizer()


def token_of(tokenizer: Tokenizer, name: str) -> int:
    token = tokenizer.token_to_id(name)
    assert token is not None
    return token


def pieces(tokenizer: Tokenizer, tokens: list[int]) -> list[str]:
    """What each token adds, and what comes at the end."""
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.feed(token) for token in tokens), detokenizer.flush()]


def test_plain_text_comes_token_by_token() -> None:
    assert pieces(BYTES, BYTES.encode("Hi!").ids) == ["H", "i", "!", ""]


def test_a_character_of_several_tokens_is_held_back_until_it_is_whole() -> None:
    assert pieces(BYTES, BYTES.encode("a€b").ids) == ["a", "", "", "€", "b", ""]
    assert pieces(BYTES, BYTES.encode("😀").ids) == ["", "", "", "😀", ""]


def test_a_character_that_is_cut_at_the_end_comes_as_its_replacement() -> None:
    assert pieces(BYTES, BYTES.encode("a€").ids[:-1]) == ["a", "", "", "\ufffd"]


def test_special_tokens_are_no_text() -> None:
    end = token_of(BYTES, "<|end|>")
    assert "".join(pieces(BYTES, [*BYTES.encode("a").ids, end])) == "a"


def test_spaces_between_words_are_kept_and_the_one_before_the_first_is_not() -> None:
    hello, world = token_of(FALLBACK, "▁Hello"), token_of(FALLBACK, "▁world")
    assert pieces(FALLBACK, [hello, world]) == ["Hello", " world", ""]


def test_bytes_by_name_become_their_character() -> None:
    euro = [token_of(FALLBACK, f"<0x{byte:02X}>") for byte in "€".encode()]
    assert pieces(FALLBACK, euro) == ["", "", "€", ""]


@settings(max_examples=100)
@given(st.text(max_size=20))
def test_any_text_comes_out_as_it_went_in(text: str) -> None:
    assert "".join(pieces(BYTES, BYTES.encode(text).ids)) == text


def test_two_answers_do_not_hold_back_each_others_characters() -> None:
    first, second = Detokenizer(BYTES), Detokenizer(BYTES)
    euro, yen = BYTES.encode("€").ids, BYTES.encode("¥").ids
    assert [first.feed(euro[0]), second.feed(yen[0]), first.feed(euro[1]), second.feed(yen[1])] == ["", "", "", "¥"]
    assert first.feed(euro[2]) == "€"


@pytest.mark.parametrize(
    ("tokenizer", "token", "content"),
    [
        (BYTES, BYTES.encode("H").ids[0], b"H"),
        (BYTES, BYTES.encode(" ").ids[0], b" "),
        (BYTES, BYTES.encode("€").ids[1], b"\x82"),
        (BYTES, token_of(BYTES, "<|end|>"), b"<|end|>"),
        (FALLBACK, token_of(FALLBACK, "<0x82>"), b"\x82"),
        (FALLBACK, token_of(FALLBACK, "<0x41>"), b"A"),
        (FALLBACK, token_of(FALLBACK, "!"), b"!"),
        (FALLBACK, token_of(FALLBACK, "</s>"), b"</s>"),
        (BYTES, 100_000, b""),
    ],
)
def test_a_token_has_its_bytes(tokenizer: Tokenizer, token: int, content: bytes) -> None:
    assert TokenTexts(tokenizer).bytes(token) == content


def test_the_bytes_of_all_tokens_together_are_the_text() -> None:
    text = "a€ 😀\n"
    assert b"".join(TokenTexts(BYTES).bytes(token) for token in BYTES.encode(text).ids) == text.encode()


def test_a_word_keeps_the_space_before_it() -> None:
    """So that the bytes of all tokens together are the text."""
    assert TokenTexts(FALLBACK).bytes(token_of(FALLBACK, "▁world")) == b" world"


def test_a_log_probability_carries_texts_and_bytes() -> None:
    h, euro = BYTES.encode("H").ids[0], BYTES.encode("€").ids[0]
    logprob = TokenTexts(BYTES).logprob(Choice(h, -0.5, ((h, -0.5), (euro, -2.0))))
    assert (logprob.text, logprob.bytes, logprob.logprob) == ("H", b"H", -0.5)
    assert logprob.top == (Alternative("H", b"H", -0.5), Alternative("\ufffd", b"\xe2", -2.0))
