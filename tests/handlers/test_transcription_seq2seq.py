"""Models that write texts in batches of any requests; on the processor, and the same on a GPU with `-m gpu`."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, AutoModelForSpeechSeq2Seq, AutoTokenizer, Wav2Vec2FeatureExtractor

from batching.job import Caller
from handlers.errors import InvalidRequest, ModelLoadError
from handlers.spec import ModelSpec, Task
from handlers.transcription.engine import SAMPLE_RATE, Heard, Options, Window
from handlers.transcription.handler import WhisperHandler
from handlers.transcription.prompts import load_prompt_counter
from handlers.transcription.seq2seq import Seq2SeqOnTorch
from handlers.transcription.transformers import load
from handlers.transcription.types import TranscriptionRequest
from tests.handlers.audio_files import sound_file, sweep
from tests.handlers.speech_models import EverythingIsSpeech
from tests.handlers.tiny_seq2seq import (
    END,
    MOST_TOKENS,
    save_encoder_decoder,
    save_moonshine,
    save_speech2text,
)

LOGPROBS = Options(logprobs=True)
KINDS: dict[str, Callable[[Path], Path]] = {
    "moonshine": save_moonshine,
    "speech2text": save_speech2text,
    "encoder-decoder": save_encoder_decoder,
}


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return KINDS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def engine(request: pytest.FixtureRequest, folder: Path) -> Seq2SeqOnTorch:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device: it needs the driver and a CUDA build of torch")
    return opened(folder, request.param)


def spec(device: str = "cpu") -> ModelSpec:
    source = "dir:tiny"
    return ModelSpec("tiny", Task.TRANSCRIPTION, source, device=device, dtype="float32", isolation="none")


def opened(folder: Path, device: str = "cpu") -> Seq2SeqOnTorch:
    engine = load(spec(device), folder)
    assert isinstance(engine, Seq2SeqOnTorch)
    return engine


def sound(seconds: float, seed: int, options: Options = LOGPROBS) -> Window:
    noise = np.random.default_rng(seed).standard_normal(int(seconds * SAMPLE_RATE), np.float32)
    return Window(noise * np.float32(0.1), options)


WINDOWS = [sound(seconds, seed) for seed, seconds in enumerate([3.0, 1.0, 3.0, 7.3, 3.0, 0.2, 3.0])]


def heard(engine: Seq2SeqOnTorch, *windows: Window) -> list[Heard]:
    answers = engine.transcribe(windows)
    assert all(isinstance(answer, Heard) for answer in answers)
    return [answer for answer in answers if isinstance(answer, Heard)]


def assert_alike(one: Heard, other: Heard) -> None:
    assert (one.audio_tokens, one.output_tokens) == (other.audio_tokens, other.output_tokens)
    assert [(s.text, s.start, s.end, s.tokens) for s in one.segments] == [
        (s.text, s.start, s.end, s.tokens) for s in other.segments
    ]
    for a, b in zip(one.segments, other.segments, strict=True):
        assert a.avg_logprob == pytest.approx(b.avg_logprob, abs=1e-3)


def test_a_window_is_heard_among_others_as_it_is_alone_in_any_order(engine: Seq2SeqOnTorch) -> None:
    alone = [heard(engine, window)[0] for window in WINDOWS]
    assert len({one.output_tokens for one in alone}) > 1
    order = random.Random(0).sample(range(len(WINDOWS)), len(WINDOWS))
    for one, other in zip(heard(engine, *WINDOWS), alone, strict=True):
        assert_alike(one, other)
    for i, one in zip(order, heard(engine, *(WINDOWS[i] for i in order)), strict=True):
        assert_alike(one, alone[i])


def test_windows_of_other_lengths_share_a_batch_where_padding_is_not_heard(
    engine: Seq2SeqOnTorch, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    generate = engine._model.generate

    def noted(**inputs: Any) -> Any:
        batches.append(len(inputs[engine._model.main_input_name]))
        return generate(**inputs)

    monkeypatch.setattr(engine._model, "generate", noted)
    heard(engine, *WINDOWS)
    is_masked = type(engine._model).__name__ == "SpeechEncoderDecoderModel"
    assert batches == ([4, 3] if is_masked else [4, 1, 1, 1])


def test_the_text_is_that_of_the_models_own_generate(engine: Seq2SeqOnTorch, folder: Path) -> None:
    model: Any = AutoModelForSpeechSeq2Seq.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    for window, one in zip(WINDOWS, heard(engine, *WINDOWS), strict=True):
        inputs = features(folder, model, window)
        (tokens,) = model.generate(**inputs, max_length=MOST_TOKENS, pad_token_id=END)
        text = "".join(segment.text for segment in one.segments)
        assert text.strip() == tokenizer.decode(tokens, skip_special_tokens=True).strip()
        assert one.output_tokens == len(tokens) - 1
        for segment in one.segments:
            assert segment.avg_logprob == pytest.approx(average(model, inputs, tokens), abs=1e-3)


def features(folder: Path, model: Any, window: Window) -> dict[str, torch.Tensor]:
    extractor: Any = AutoFeatureExtractor.from_pretrained(folder)  # type: ignore[no-untyped-call]
    inputs = extractor(window.samples, sampling_rate=SAMPLE_RATE, return_tensors="pt")
    audio = inputs.pop(extractor.model_input_names[0])
    return {model.main_input_name: audio, **inputs}


@torch.inference_mode()
def average(model: Any, inputs: dict[str, torch.Tensor], tokens: torch.Tensor) -> float:
    """Of a token of a text, when the model is given the text."""
    model.train(False)
    logits = model(**inputs, decoder_input_ids=tokens[None, :-1]).logits[0]
    logits[:, END] += model.generation_config.sequence_bias[0][1]
    return float(logits.log_softmax(-1).gather(1, tokens[1:, None]).mean())


def test_a_window_is_one_segment_without_words(engine: Seq2SeqOnTorch) -> None:
    for window, one in zip(WINDOWS, heard(engine, *WINDOWS), strict=True):
        for segment in one.segments:
            assert (segment.start, segment.end, segment.words) == (0.0, window.seconds, ())
            assert segment.text.startswith(" ") and segment.text.strip()


def test_logprobs_make_up_the_text_and_come_only_if_asked_for(engine: Seq2SeqOnTorch) -> None:
    tokens = 0
    for one in heard(engine, *WINDOWS):
        for segment in one.segments:
            assert b"".join(token.bytes for token in segment.logprobs).decode() == segment.text
            assert len(segment.logprobs) == len(segment.tokens)
            assert all(token.logprob <= 0 for token in segment.logprobs)
            tokens += len(segment.tokens)
    assert tokens > len(WINDOWS)
    (one,) = heard(engine, sound(3.0, 0, Options()))
    assert [segment.logprobs for segment in one.segments] == [()]


def test_a_window_without_numbers_fails_alone(engine: Seq2SeqOnTorch) -> None:
    broken = Window(np.full(SAMPLE_RATE * 3, np.nan, np.float32))
    one, error = engine.transcribe([WINDOWS[0], broken])
    assert isinstance(error, ValueError)
    assert isinstance(one, Heard)
    assert_alike(one, heard(engine, WINDOWS[0])[0])


@pytest.mark.parametrize(("samples", "level"), [(0, 0.0), (1599, 0.1), (SAMPLE_RATE, 0.0), (SAMPLE_RATE, 0.25)])
def test_silence_has_no_text(engine: Seq2SeqOnTorch, samples: int, level: float) -> None:
    quiet, one = heard(engine, Window(np.full(samples, level, np.float32)), WINDOWS[0])
    assert (quiet.segments, quiet.output_tokens) == ((), 0)
    assert_alike(one, heard(engine, WINDOWS[0])[0])


def test_it_takes_audio_and_nothing_else(engine: Seq2SeqOnTorch, folder: Path) -> None:
    facts = engine.facts
    assert (facts.languages, facts.translates, facts.max_prompt_tokens, facts.temperatures) == ((), False, 0, False)
    assert (facts.word_timestamps, facts.logprobs) == (False, True)
    for count in (engine.count_prompt, load_prompt_counter(spec(), folder)):
        assert (count("earlier text", ("name",)), count(None, ())) == (3, 0)


def test_steps_of_the_encoder_are_counted(tmp_path: Path) -> None:
    """Moonshine's first layers take 384 samples a step, Speech2Text's 640."""
    for save, samples in ((save_moonshine, 384), (save_speech2text, 640)):
        (one,) = heard(opened(save(tmp_path / str(samples))), sound(6.0, 0))
        assert one.audio_tokens == pytest.approx(6 * SAMPLE_RATE / samples, rel=0.02)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("param", "options"),
    [
        ("timestamp_granularities", {"word_timestamps": True}),
        ("language", {"language": "en"}),
        ("prompt", {"prompt": "earlier text"}),
        ("temperature", {"temperature": 0.5}),
        ("model", {"task": "translate"}),
    ],
)
async def test_what_it_cannot_do_is_refused_by_name(
    moonshine: Seq2SeqOnTorch, param: str, options: dict[str, Any]
) -> None:
    handler = WhisperHandler(
        spec(), Path, load_engine=lambda spec, folder: moonshine, load_voices=lambda: EverythingIsSpeech()
    )
    await handler.load()
    with pytest.raises(InvalidRequest) as refused:
        await handler.open(TranscriptionRequest(sound_file(sweep(1.0)), **options), Caller())
    assert refused.value.param == param


@pytest.fixture(scope="module")
def moonshine(tmp_path_factory: pytest.TempPathFactory) -> Seq2SeqOnTorch:
    return opened(save_moonshine(tmp_path_factory.mktemp("refusing")))


def test_a_model_that_cannot_be_opened_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "moonshine"}')
    with pytest.raises(ModelLoadError, match="model tiny: cannot be loaded from dir:tiny"):
        load(spec(), tmp_path)


def test_a_model_for_another_rate_is_refused(tmp_path: Path) -> None:
    save_moonshine(tmp_path)
    Wav2Vec2FeatureExtractor(sampling_rate=8_000).save_pretrained(tmp_path)  # type: ignore[no-untyped-call]
    with pytest.raises(ModelLoadError, match="hears audio at 8000 Hz; choose a model for 16000 Hz"):
        load(spec(), tmp_path)
