"""The engine on faster-whisper: what it opens, and what it hears with the starter model."""

from dataclasses import replace
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import ctranslate2
import numpy as np
import pytest

from batching.job import Caller
from handlers.audio.decode import SAMPLE_RATE, decode
from handlers.audio.waveform import Waveform
from handlers.errors import ModelLoadError
from handlers.sources import fetch
from handlers.spec import ModelSpec, Task
from handlers.starter import SPEECH_SAMPLES, TRANSCRIPTION
from handlers.transcription.engine import Heard, Options, Window
from handlers.transcription.faster_whisper import WhisperEngine, load
from handlers.transcription.handler import WhisperHandler
from handlers.transcription.types import TranscriptionRequest, Word
from tests.handlers.audio_files import CONTAINERS, encoded
from tests.handlers.running import running
from tests.wer import word_error_rate

BECKETT = "Ever tried, ever failed. No matter, try again. Fail again. Fail better."
SPEC = ModelSpec("whisper", Task.TRANSCRIPTION, "dir:somewhere")


def test_a_folder_without_a_model_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match="has no model.bin, tokenizer.json"):
        load(SPEC, tmp_path)


def test_a_damaged_model_is_one_clear_line(tmp_path: Path) -> None:
    for name in ("model.bin", "config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes(b"\xff{\n")
    with pytest.raises(
        ModelLoadError, match="whisper: cannot run .* on cpu in int8: .*fetch the files again"
    ) as failed:
        load(replace(SPEC, device="cpu"), tmp_path)
    assert "\n" not in str(failed.value)


def test_a_missing_cuda_device_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("model.bin", "config.json", "tokenizer.json"):
        (tmp_path / name).touch()
    monkeypatch.setattr(ctranslate2, "get_cuda_device_count", lambda: 0)
    with pytest.raises(ModelLoadError, match="no CUDA device here; set its device to cpu or auto"):
        load(replace(SPEC, device="cuda:1"), tmp_path)


@pytest.mark.models
def test_a_number_format_that_the_device_lacks_is_a_clear_error(models_dir: Path) -> None:
    folder = fetch(TRANSCRIPTION.source, models_dir)
    with pytest.raises(ModelLoadError, match="in float16: .*choose another dtype"):
        load(replace(TRANSCRIPTION, device="cpu", dtype="float16"), folder)


@pytest.fixture(scope="module")
def whisper(models_dir: Path) -> WhisperEngine:
    return load(replace(TRANSCRIPTION, device="cpu"), fetch(TRANSCRIPTION.source, models_dir))


def recorded(models_dir: Path, name: str) -> Waveform:
    with (fetch(SPEECH_SAMPLES, models_dir) / name).open("rb") as file:
        return decode(file, max_seconds=60)


@pytest.fixture(scope="module")
def beckett(models_dir: Path) -> Waveform:
    return recorded(models_dir, "beckett.wav")


@pytest.fixture(scope="module")
def two_cities(models_dir: Path) -> Waveform:
    return recorded(models_dir, "two_cities.wav")


def hear(engine: WhisperEngine, *windows: Window) -> list[Heard]:
    heard = engine.transcribe(windows)
    assert all(isinstance(answer, Heard) for answer in heard)
    return [answer for answer in heard if isinstance(answer, Heard)]


def text(heard: Heard) -> str:
    return "".join(segment.text for segment in heard.segments).strip()


@pytest.mark.models
def test_a_batch_of_mixed_options_and_lengths_is_the_windows_alone(
    whisper: WhisperEngine, beckett: Waveform, two_cities: Waveform
) -> None:
    windows = [
        Window(beckett),
        Window(two_cities[: 8 * SAMPLE_RATE], Options(word_timestamps=True)),
        Window(beckett[: 4 * SAMPLE_RATE], Options(prompt="Ever tried.", keywords=("Godot",))),
        Window(two_cities[: 12 * SAMPLE_RATE], Options(logprobs=True)),
        Window(two_cities[29 * SAMPLE_RATE : 35 * SAMPLE_RATE], Options(word_timestamps=True)),
    ]
    together = hear(whisper, *windows)
    backwards = hear(whisper, *windows[::-1])[::-1]
    alone = [hear(whisper, window)[0] for window in windows]
    for one, two, three in zip(together, backwards, alone, strict=True):
        assert text(one) == text(two) == text(three) != ""
        assert one.output_tokens == two.output_tokens == three.output_tokens
        for words, others in zip(spoken(one), spoken(three), strict=True):
            assert words.word == others.word
            assert (words.start, words.end) == pytest.approx((others.start, others.end), abs=0.02)
    assert [bool(spoken(answer)) for answer in together] == [False, True, False, False, True]
    assert [bool(answer.segments[0].logprobs) for answer in together] == [False, False, False, True, False]


@pytest.mark.models
def test_the_times_of_words_do_not_depend_on_windows_of_the_same_length(
    whisper: WhisperEngine, beckett: Waveform, two_cities: Waveform
) -> None:
    """The texts have 10 and 24 words."""
    windows = [Window(speech[: 8 * SAMPLE_RATE], Options(word_timestamps=True)) for speech in (beckett, two_cities)]
    alone = [spoken(hear(whisper, window)[0]) for window in windows]
    for together, words in zip(hear(whisper, *windows), alone, strict=True):
        assert [(word.word, word.start, word.end) for word in spoken(together)] == [
            (word.word, word.start, word.end) for word in words
        ]


def spoken(heard: Heard) -> list[Word]:
    return [word for segment in heard.segments for word in segment.words]


@pytest.mark.models
def test_a_window_whose_text_breaks_off_is_heard_to_its_end(whisper: WhisperEngine, two_cities: Waveform) -> None:
    """Whisper closes its last segment 4.5 seconds before the end of this one."""
    speech = two_cities[35_461 : 35_461 + 29 * SAMPLE_RATE]
    (heard,) = hear(whisper, Window(speech))
    segments, _ = whisper._model.transcribe(speech, beam_size=1, condition_on_previous_text=False)
    assert word_error_rate("".join(segment.text for segment in segments), text(heard)) <= 0.05
    assert heard.segments[-1].end > 28
    assert all(one.end <= other.start for one, other in pairwise(heard.segments))


@pytest.mark.models
def test_words_go_forward_and_lie_inside_their_segment(whisper: WhisperEngine, two_cities: Waveform) -> None:
    (heard,) = hear(whisper, Window(two_cities[: 29 * SAMPLE_RATE], Options(word_timestamps=True)))
    words = spoken(heard)
    assert all(word.start <= word.end for word in words)
    assert all(one.end <= other.start for one, other in pairwise(words))
    for segment in heard.segments:
        assert segment.start == segment.words[0].start
        assert segment.end == segment.words[-1].end
        assert "".join(word.word for word in segment.words) == segment.text


@pytest.mark.models
def test_logprobs_are_those_of_the_text_and_its_average(whisper: WhisperEngine, beckett: Waveform) -> None:
    (heard,) = hear(whisper, Window(beckett, Options(logprobs=True)))
    tokens = [token for segment in heard.segments for token in segment.logprobs]
    assert b"".join(token.bytes for token in tokens).decode().strip() == text(heard)
    assert all(token.logprob <= 0 for token in tokens)
    assert heard.segments[0].avg_logprob == hear(whisper, Window(beckett))[0].segments[0].avg_logprob


@pytest.mark.models
def test_segments_say_how_they_were_found(whisper: WhisperEngine, beckett: Waveform) -> None:
    (heard,) = hear(whisper, Window(beckett))
    assert heard.language == "en"
    assert heard.audio_tokens == pytest.approx(len(beckett) / SAMPLE_RATE * 50, abs=1)
    segment = heard.segments[0]
    assert segment.temperature == 0
    assert -1 < segment.avg_logprob < 0
    assert 0 < segment.compression_ratio < 2.4
    assert 0 <= segment.no_speech_prob < 1
    assert 0 <= segment.start < segment.end <= len(beckett) / SAMPLE_RATE


@pytest.mark.models
def test_only_windows_that_fail_are_decoded_again(
    whisper: WhisperEngine, beckett: Waveform, two_cities: Waveform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window whose text repeats itself: once more in a whole window, then warmer."""
    calls: list[tuple[int, int, float]] = []
    model = whisper._model.model

    class Repetitive:
        is_multilingual = False

        def generate(self, features: Any, prompts: list[list[int]], **options: Any) -> list[Any]:
            temperature = options.get("sampling_temperature", 0.0)
            calls.append((len(prompts), features.shape[1], temperature))
            return [
                Spoiled(result) if features.shape[0] == 1 and temperature < 0.4 else result
                for result in model.generate(features, prompts, **options)
            ]

        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

    class Spoiled:
        def __init__(self, result: Any) -> None:
            self.sequences_ids, self.scores, self.no_speech_prob = result.sequences_ids, [-2.0], 0.0

    monkeypatch.setattr(whisper._model, "model", Repetitive())
    short = Window(two_cities[: 4 * SAMPLE_RATE])
    answers = hear(whisper, Window(beckett), short, Window(beckett))
    assert calls == [(2, 750, 0.0), (1, 500, 0.0), (1, 1500, 0.0), (1, 1500, 0.2), (1, 1500, 0.4)]
    assert [answer.segments[0].temperature for answer in answers] == [0.0, 0.4, 0.0]


@pytest.mark.models
def test_silence_and_noise_are_no_reason_to_fail(whisper: WhisperEngine) -> None:
    noise = np.random.default_rng(0).normal(scale=0.05, size=3 * SAMPLE_RATE).astype(np.float32)
    hear(whisper, Window(np.zeros(512, np.float32)), Window(noise))


@pytest.mark.models
def test_a_prompt_of_control_tokens_is_text(whisper: WhisperEngine, beckett: Waveform) -> None:
    prompt = "<|endoftext|><|startoftranscript|>\0"
    assert whisper.count_prompt(prompt, ()) > 5
    (heard,) = hear(whisper, Window(beckett, Options(prompt=prompt)))
    assert word_error_rate(BECKETT, text(heard)) <= 0.1


@pytest.mark.models
@pytest.mark.anyio
async def test_every_format_is_transcribed(models_dir: Path, whisper: WhisperEngine, beckett: Waveform) -> None:
    spec = replace(TRANSCRIPTION, isolation="none")
    handler = WhisperHandler(spec, lambda source: Path(), load_engine=lambda spec, folder: whisper)
    texts: dict[str, str] = {}

    async def transcribe(kind: str) -> None:
        request = TranscriptionRequest(BytesIO(encoded(kind, beckett)))
        async with await handler.open(request, Caller()) as opened:
            async for _ in opened:
                pass
            texts[kind] = opened.transcript().text
            assert opened.transcript().language == "en"
            assert opened.transcript().duration == pytest.approx(9.96, abs=0.1)

    async with running(handler), anyio.create_task_group() as callers:
        for kind in CONTAINERS:
            callers.start_soon(transcribe, kind)
    assert set(texts) == set(CONTAINERS)
    assert all(word_error_rate(BECKETT, found) <= 0.1 for found in texts.values())
