"""One answer: tokens in, deltas out."""

from collections.abc import Sequence

from tokenizers import Tokenizer

from handlers.chat.answer import Answer
from handlers.chat.engine import Generated
from handlers.chat.sampling import Choice
from handlers.chat.stops import StopMatcher
from handlers.chat.text import Detokenizer, TokenTexts
from handlers.chat.types import Delta
from tests.handlers.test_chat_text import bytes_tokenizer

TOKENIZER: Tokenizer = bytes_tokenizer()


def answer_of(*stops: str, logprobs: bool = False, echo: str = "", index: int = 0) -> Answer:
    texts = TokenTexts(TOKENIZER) if logprobs else None
    return Answer(index, Detokenizer(TOKENIZER), StopMatcher(stops), texts=texts, echo=echo)


def generated(text: str, logprob: float | None = None) -> list[Generated]:
    return [Generated(Choice(token, logprob)) for token in TOKENIZER.encode(text).ids]


def feed(answer: Answer, *texts: str) -> list[Delta]:
    return [answer.feed(generated(text)) for text in texts]


def texts_of(deltas: Sequence[Delta]) -> list[str]:
    return [delta.text for delta in deltas]


def test_tokens_become_text_and_are_counted() -> None:
    deltas = feed(answer_of(index=3), "He", "llo")
    assert texts_of(deltas) == ["He", "llo"]
    assert [(delta.index, delta.completion_tokens, delta.finish_reason) for delta in deltas] == [
        (3, 2, None),
        (3, 5, None),
    ]


def test_the_end_tells_why() -> None:
    answer = answer_of()
    feed(answer, "Hi")
    assert answer.end("length") == Delta("", 2, "length")


def test_a_stop_text_ends_the_answer_before_itself() -> None:
    answer = answer_of("END")
    deltas = feed(answer, "abE", "NDcd")
    assert texts_of(deltas) == ["ab", ""]
    assert deltas[-1].finish_reason == "stop"


def test_tokens_after_a_stop_text_are_not_counted() -> None:
    answer = answer_of("b")
    (delta,) = feed(answer, "abcdef")
    assert (delta.text, delta.completion_tokens, delta.finish_reason) == ("a", 2, "stop")


def test_the_beginning_of_a_stop_text_is_held_back_and_comes_at_the_end() -> None:
    answer = answer_of("END")
    assert texts_of(feed(answer, "xE", "N")) == ["x", ""]
    assert answer.end("stop").text == "EN"


def test_a_cut_character_comes_at_the_end() -> None:
    answer = answer_of()
    assert answer.feed(generated("a€")[:-1]).text == "a"
    assert answer.end("length") == Delta("\ufffd", 3, "length")


def test_a_cut_character_may_complete_a_stop_text() -> None:
    answer = answer_of("a\ufffd")
    assert answer.feed(generated("a€")[:-1]).text == ""
    assert answer.end("length") == Delta("", 3, "stop")


def test_an_echo_comes_once_and_first() -> None:
    assert texts_of(feed(answer_of(echo="Once "), "a", "b")) == ["Once a", "b"]


def test_a_stop_text_in_the_echo_ends_nothing() -> None:
    deltas = feed(answer_of("Once", echo="Once "), "a")
    assert (deltas[0].text, deltas[0].finish_reason) == ("Once a", None)


def test_log_probabilities_come_with_their_tokens() -> None:
    answer = answer_of(logprobs=True)
    delta = answer.feed(generated("Hi", -0.25))
    assert [(token.text, token.logprob) for token in delta.logprobs] == [("H", -0.25), ("i", -0.25)]


def test_without_being_asked_for_there_are_no_log_probabilities() -> None:
    assert answer_of().feed(generated("Hi", -0.25)).logprobs == ()


def test_the_log_probabilities_of_the_prompt_come_before_those_of_the_answer() -> None:
    answer = answer_of(logprobs=True)
    first, second = TOKENIZER.encode("ab").ids
    token = Generated(Choice(TOKENIZER.encode("c").ids[0], -3.0), prompt=(Choice(first), Choice(second, -2.0)))
    assert [(token.text, token.logprob) for token in answer.feed([token]).logprobs] == [
        ("a", None),
        ("b", -2.0),
        ("c", -3.0),
    ]
