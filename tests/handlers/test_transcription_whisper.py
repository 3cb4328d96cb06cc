"""Whisper of transformers in batches of any requests; on the processor, and the same on a GPU with `-m gpu`."""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

from handlers.errors import ModelLoadError
from handlers.spec import ModelSpec, Task
from handlers.transcription.engine import SAMPLE_RATE, Engine, Heard, Options, Window
from handlers.transcription.loading import engine_name
from handlers.transcription.segments import split
from handlers.transcription.transformers import load
from tests.handlers.tiny_whisper import FIRST_TIMESTAMP, save_whisper

EVERYTHING = Options(language="en", temperature=0.2, word_timestamps=True, logprobs=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def engine(request: pytest.FixtureRequest, folder: Path) -> Engine:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device: it needs the driver and a CUDA build of torch")
    return load(spec(device=request.param), folder)


def spec(device: str = "cpu") -> ModelSpec:
    return ModelSpec(id="tiny", task=Task.TRANSCRIPTION, source="dir:tiny", device=device, dtype="float32")


def sound(seconds: float, seed: int, options: Options = EVERYTHING) -> Window:
    noise = np.random.default_rng(seed).standard_normal(int(seconds * SAMPLE_RATE)).astype(np.float32)
    return Window(noise * np.float32(0.1), options)


def heard(engine: Engine, *windows: Window) -> list[Heard]:
    answers = engine.transcribe(windows)
    assert all(isinstance(answer, Heard) for answer in answers)
    return [answer for answer in answers if isinstance(answer, Heard)]


def assert_alike(one: Heard, other: Heard) -> None:
    """The same tokens, and times and probabilities as near as the arithmetic allows."""
    assert (one.language, one.audio_tokens, one.output_tokens) == (
        other.language,
        other.audio_tokens,
        other.output_tokens,
    )
    assert [segment.tokens for segment in one.segments] == [segment.tokens for segment in other.segments]
    for a, b in zip(one.segments, other.segments, strict=True):
        assert (a.start, a.end, a.avg_logprob) == pytest.approx((b.start, b.end, b.avg_logprob), abs=1e-3)
        assert [word.word for word in a.words] == [word.word for word in b.words]
        assert [word.start for word in a.words] == pytest.approx([word.start for word in b.words], abs=0.021)
        assert [token.logprob for token in a.logprobs] == pytest.approx([t.logprob for t in b.logprobs], abs=1e-3)


WINDOWS = [
    sound(3.0, 1),
    sound(11.5, 2, replace(EVERYTHING, language="ja")),
    sound(0.3, 3, replace(EVERYTHING, prompt="abc def")),
    sound(30.0, 4, replace(EVERYTHING, task="translate", language="de")),
    sound(7.0, 5, replace(EVERYTHING, keywords=("op", "no"), temperature=0.0)),
    sound(5.0, 6, replace(EVERYTHING, language=None)),
]


def test_a_window_is_heard_among_others_as_it_is_alone(engine: Engine) -> None:
    together = heard(engine, *WINDOWS)
    assert sum(len(one.segments) for one in together) >= len(WINDOWS)
    for window, one in zip(WINDOWS, together, strict=True):
        assert_alike(one, heard(engine, window)[0])


def test_the_order_of_the_windows_does_not_matter(engine: Engine) -> None:
    together = heard(engine, *WINDOWS)
    order = random.Random(0).sample(range(len(WINDOWS)), len(WINDOWS))
    for place, one in zip(order, heard(engine, *(WINDOWS[i] for i in order)), strict=True):
        assert_alike(one, together[place])


def test_a_window_without_numbers_fails_alone(engine: Engine) -> None:
    broken = Window(np.full(SAMPLE_RATE, np.nan, np.float32), EVERYTHING)
    one, error, other = engine.transcribe([WINDOWS[0], broken, WINDOWS[1]])
    assert isinstance(error, ValueError)
    assert isinstance(one, Heard)
    assert isinstance(other, Heard)
    assert_alike(one, heard(engine, WINDOWS[0])[0])
    assert_alike(other, heard(engine, WINDOWS[1])[0])
    assert isinstance(engine.transcribe([broken])[0], ValueError)


def test_words_follow_one_another_inside_their_segment_and_make_up_its_text(engine: Engine) -> None:
    words = 0
    for window, one in zip(WINDOWS, heard(engine, *WINDOWS), strict=True):
        for segment in one.segments:
            times = [time for word in segment.words for time in (word.start, word.end)]
            assert times == sorted(times)
            assert 0 <= segment.start == times[0] <= times[-1] == segment.end <= window.seconds
            assert "".join(word.word for word in segment.words) == segment.text
            assert all(0 <= word.probability <= 1 for word in segment.words)
            words += len(segment.words)
    assert words > len(WINDOWS)


def test_logprobs_are_those_of_the_text(engine: Engine) -> None:
    for one in heard(engine, *WINDOWS):
        for segment in one.segments:
            assert b"".join(token.bytes for token in segment.logprobs).decode() == segment.text
            assert all(token.logprob <= 0 for token in segment.logprobs)


def test_only_what_is_asked_for_is_there(engine: Engine) -> None:
    (one,) = heard(engine, sound(3.0, 1, Options(language="en", temperature=0.2)))
    assert one.segments
    assert all((segment.words, segment.logprobs) == ((), ()) for segment in one.segments)


def test_the_language_is_detected_among_those_that_are_possible(engine: Engine) -> None:
    window = sound(5.0, 6, replace(EVERYTHING, language=None))
    for language in engine.facts.languages:
        among = replace(window, options=replace(window.options, languages=(language,)))
        assert [one.language for one in heard(engine, among) if one.segments] == [language]
    assert heard(engine, window)[0].language in engine.facts.languages


def test_control_tokens_in_a_prompt_are_text(engine: Engine) -> None:
    text = "<|endoftext|>"
    assert engine.count_prompt(text, ()) == len(f" {text}")
    assert engine.count_prompt("ab", ("c", "d")) == len(" ab") + len(" c, d")
    assert engine.count_prompt("  ", ()) == 0


@pytest.mark.parametrize("window", [WINDOWS[0], WINDOWS[1], WINDOWS[3]])
def test_greedy_tokens_are_those_of_transformers_own_generation(engine: Engine, folder: Path, window: Window) -> None:
    model = WhisperForConditionalGeneration.from_pretrained(folder)
    model.generation_config.max_length = None
    extractor = WhisperFeatureExtractor.from_pretrained(folder)
    features = extractor(window.samples, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
    theirs = model.generate(
        features,
        language="de",
        task="translate",
        return_timestamps=True,
        force_unique_generate_call=True,
        max_new_tokens=24,
    )
    tokens = theirs[0].tolist()[3:]
    # Almost no temperature: at 0 the engine goes on to warmer ones, as the text is improbable.
    options = replace(EVERYTHING, language="de", task="translate", temperature=1e-6)
    (one,) = heard(engine, Window(window.samples, options))
    assert one.output_tokens == len(tokens)
    pieces = [piece for piece in split(tokens, FIRST_TIMESTAMP, window.seconds) if piece.start < piece.end]
    assert [list(segment.tokens) for segment in one.segments] == [list(piece.tokens) for piece in pieces]
    assert pieces


def test_what_it_can_do_is_told(engine: Engine, tmp_path: Path) -> None:
    facts = engine.facts
    assert (set(facts.languages), facts.translates, facts.max_prompt_tokens) == ({"en", "de", "ja"}, True, 23)
    english = load(spec(), save_whisper(tmp_path, multilingual=False)).facts
    assert (english.languages, english.translates) == (("en",), False)


def test_other_models_are_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dia", "architectures": ["DiaFor"]}))
    with pytest.raises(ModelLoadError, match="this is DiaFor; choose one of those"):
        load(spec(), tmp_path)


@pytest.mark.parametrize(
    ("engine", "files", "chosen"),
    [
        ("auto", ["config.json", "model.bin"], "faster-whisper"),
        ("auto", ["config.json", "model.safetensors"], "transformers"),
        ("auto", ["config.json", "model.bin", "model.safetensors"], "faster-whisper"),
        ("auto", [], "faster-whisper"),
        ("transformers", ["config.json", "model.bin"], "transformers"),
        ("faster-whisper", ["config.json", "model.safetensors"], "faster-whisper"),
    ],
)
def test_the_engine_is_the_one_that_is_named_or_that_the_files_are_for(
    tmp_path: Path, engine: str, files: list[str], chosen: str
) -> None:
    for name in files:
        (tmp_path / name).write_text('{"model_type": "whisper"}')
    assert engine_name(replace(spec(), engine=engine), tmp_path) == chosen
