"""The starter voice itself: what it can read, and whether it is understood."""

import logging
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batching.job import Caller
from handlers.audio.decode import decode
from handlers.audio.waveform import Waveform
from handlers.errors import InvalidRequest, ModelLoadError
from handlers.sources import fetch
from handlers.speech import hibari
from handlers.speech.handler import SynthesisHandler
from handlers.speech.hibari import HibariEngine
from handlers.speech.types import Sentence, SpeechRequest
from handlers.starter import SPEECH, TRANSCRIPTION
from handlers.transcription.faster_whisper import WhisperEngine
from handlers.transcription.faster_whisper import load as load_whisper
from tests.handlers.running import running
from tests.handlers.speech_models import text_of
from tests.wer import word_error_rate

TEXT = (
    "The committee met on Tuesday and agreed to publish the whole report. "
    "Nobody expected the weather to change so quickly, but the harvest was already safe in the barns. "
    "Please send the corrected figures before noon."
)


@pytest.fixture(scope="module")
def engine() -> HibariEngine:
    return hibari.load(SPEECH, fetch(SPEECH.source, Path()))


def spoken(engine: HibariEngine, text: str, speed: float = 1.0, voice: str = "heart") -> Waveform:
    sentences = [Sentence(sentence, voice, speed) for sentence in engine.prepare(text).sentences]
    waveforms: list[Waveform] = []
    for answer in engine.speak(sentences):
        if isinstance(answer, Exception):
            raise answer
        waveforms.append(answer)
    return np.concatenate([np.zeros(0, np.float32), *waveforms])


@pytest.mark.models
def test_only_voices_on_this_machine_are_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIBARI_HOME", str(tmp_path / "cache"))
    folder = fetch(SPEECH.source, Path())
    assert set(hibari.load(SPEECH, folder).voices.values()) == {"heart"}
    bundled = (folder / "assets" / "hibari.onnx").read_bytes()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "bf_emma.int8.onnx").write_bytes(bundled)
    (tmp_path / "af_kore.int8.onnx").write_bytes(bundled)
    voices = hibari.load(SPEECH, tmp_path).voices
    assert (voices["sage"], voices["coral"], voices["onyx"]) == ("emma", "kore", "heart")


@pytest.mark.models
def test_a_british_voice_has_its_own_pronunciation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIBARI_HOME", str(tmp_path))
    (tmp_path / "bf_emma.int8.onnx").write_bytes((fetch(SPEECH.source, Path()) / "assets" / "hibari.onnx").read_bytes())
    engine = hibari.load(SPEECH, tmp_path)
    american, british = (spoken(engine, "Better.", voice=voice) for voice in ("heart", "emma"))
    assert not np.array_equal(american, british)


@pytest.mark.models
def test_a_damaged_voice_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "hibari.onnx").write_bytes(b"\xff\n")
    with pytest.raises(
        ModelLoadError, match="hibari: the voice heart cannot be opened: .*install hibari-tts"
    ) as failed:
        hibari.load(SPEECH, tmp_path)
    assert "\n" not in str(failed.value)


@pytest.mark.models
def test_the_same_text_gives_the_same_sound(engine: HibariEngine) -> None:
    np.testing.assert_array_equal(spoken(engine, TEXT), spoken(engine, TEXT))


@pytest.mark.models
def test_text_is_spoken_a_sentence_at_a_time(engine: HibariEngine) -> None:
    assert len(engine.prepare(TEXT).sentences) == 3


@pytest.mark.models
def test_the_length_is_reckoned_beforehand(engine: HibariEngine) -> None:
    for text in (TEXT, "9" * 200, "Call 555-0100 at 7:30, or pay 1,999 dollars by 12/24."):
        assert len(spoken(engine, text)) / engine.sample_rate == pytest.approx(engine.prepare(text).seconds, rel=0.5)


@pytest.mark.models
def test_speed_divides_the_duration(engine: HibariEngine) -> None:
    usual = len(spoken(engine, TEXT))
    for speed in (0.25, 0.5, 0.8, 1.25, 2.0, 4.0):
        # The voice sets its own pauses, so the model's own range is only roughly proportional.
        assert len(spoken(engine, TEXT, speed)) == pytest.approx(usual / speed, rel=0.12), speed


@pytest.mark.models
@pytest.mark.parametrize("text", ["!!!", "...", "—", "“”", "\0", "\u200b"])
def test_pauses_alone_are_no_sentence(engine: HibariEngine, text: str) -> None:
    assert engine.prepare(text).sentences == ()


@pytest.mark.models
@pytest.mark.parametrize(
    "text",
    [
        "9" * 200, "%" * 200, "a-" * 100, "aB" * 100, "http://" + "x" * 200, "😀", "你好世界", "Item 4\U0001f105a.",
        "مرحبا", "1,000,000,000,000,000,000,000,000,000,000,000,000,000,000", "£", "½", "1e400", "0x1F", "v1.2.3-rc4",
        "The 21st of Mar. 1999, 7:05 pm, e.g. $3.5bn, 5km/h, 20°C, 3/4", "¿Qué? ¡Sí!", "a\u0301\u0302\u0303",
    ],
)  # fmt: skip
def test_odd_texts_are_spoken(engine: HibariEngine, text: str) -> None:
    assert len(spoken(engine, text)) > 1000


@pytest.mark.models
@settings(max_examples=15)
@given(st.text(st.characters(exclude_categories=["Cs", "Co", "Cn"]), max_size=40))
def test_any_text_is_spoken_whole(engine: HibariEngine, text: str) -> None:
    for sentence in engine.prepare(text).sentences:
        [answer] = engine.speak([Sentence(sentence, "heart")])
        assert not isinstance(answer, Exception), answer
        assert len(answer) > 0 and np.isfinite(answer).all()


@pytest.mark.models
@settings(max_examples=15)
@given(st.text("0123456789.,$€£%/:-#+ap mkKMx'\"()", min_size=1, max_size=30))
def test_numbers_and_signs_in_any_order_are_spoken(engine: HibariEngine, text: str) -> None:
    for sentence in engine.prepare(text).sentences:
        [answer] = engine.speak([Sentence(sentence, "heart")])
        assert not isinstance(answer, Exception), answer


@pytest.mark.models
def test_a_sentence_that_cannot_be_read_is_the_callers_mistake(engine: HibariEngine) -> None:
    [answer] = engine.speak([Sentence("\u4f60", "heart")])
    assert isinstance(answer, InvalidRequest)
    assert (answer.param, "cannot read" in answer.message) == ("input", True)


@pytest.mark.models
def test_a_long_sentence_without_a_comma_is_spoken_in_pieces(engine: HibariEngine) -> None:
    sentences = engine.prepare("word " * 200).sentences
    assert len(sentences) > 1
    assert max(map(len, sentences)) <= 300


@pytest.fixture(scope="module")
def whisper(models_dir: Path) -> WhisperEngine:
    return load_whisper(replace(TRANSCRIPTION, device="cpu"), fetch(TRANSCRIPTION.source, models_dir))


def heard(whisper: WhisperEngine, audio: bytes) -> str:
    waveform = decode(BytesIO(audio), max_seconds=60)
    return text_of(whisper, waveform)


@pytest.mark.models
@pytest.mark.anyio
@pytest.mark.parametrize(("format", "speed"), [("mp3", 1.0), ("opus", 2.0), ("aac", 0.4)])
async def test_what_is_spoken_is_understood(
    engine: HibariEngine, whisper: WhisperEngine, format: str, speed: float
) -> None:
    handler = SynthesisHandler(SPEECH, Path, load_engine=lambda spec, folder: engine)
    async with running(handler):
        async with await handler.open(SpeechRequest(TEXT, "alloy", format, speed), Caller()) as synthesis:
            audio = b"".join([chunk async for chunk in synthesis])
    assert word_error_rate(TEXT, heard(whisper, audio)) <= 0.1


@pytest.mark.models
@pytest.mark.anyio
async def test_loading_says_what_runs_where(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    handler = SynthesisHandler(SPEECH, lambda source: fetch(source, Path()))
    await handler.load()
    assert "hibari runs on cpu in int8 with the voices heart" in caplog.text
    assert handler.describe()["voices"]["alloy"] == "heart"
