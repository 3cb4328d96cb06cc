"""Voices of transformers, on tiny models of the real classes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers.utils.logging import enable_progress_bar, is_progress_bar_enabled

from handlers.audio.waveform import Waveform
from handlers.errors import InvalidRequest, ModelLoadError
from handlers.spec import ModelSpec, Task
from handlers.speech.loading import load_engine
from handlers.speech.transformers import TransformersEngine, load
from handlers.speech.types import Sentence
from tests.handlers.tiny_speech import save_speecht5, save_vits

SPEC = ModelSpec("voices", Task.SPEECH, "dir:somewhere", device="cpu")
SENTENCES = ["some words", "a", "many words follow", "yes"]
SAVE: Sequence[Callable[[Path], Path]] = [save_vits, save_speecht5]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def waveforms(engine: TransformersEngine, texts: Sequence[str], speed: float = 1.0) -> list[Waveform]:
    voice = engine.voices["alloy"]
    answers = engine.speak([Sentence(text, voice, speed) for text in texts])
    assert not any(isinstance(answer, Exception) for answer in answers)
    return [answer for answer in answers if not isinstance(answer, Exception)]


@pytest.fixture(scope="module", params=SAVE)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    saved: Path = request.param(tmp_path_factory.mktemp("voice"))
    return saved


@pytest.fixture(scope="module")
def engine(folder: Path) -> TransformersEngine:
    return load(SPEC, folder)


@pytest.mark.parametrize("device", DEVICES)
def test_neighbours_in_a_batch_change_nothing(folder: Path, device: str) -> None:
    engine = load(replace(SPEC, device=device), folder)
    together = waveforms(engine, SENTENCES)
    backwards = waveforms(engine, SENTENCES[::-1])[::-1]
    alone = [waveforms(engine, [text])[0] for text in SENTENCES]
    for batched, reversed_, single in zip(together, backwards, alone, strict=True):
        assert len(single) > 40
        assert len(batched) == len(reversed_) == len(single)
        np.testing.assert_allclose(batched, single, atol=2e-4)
        np.testing.assert_allclose(reversed_, single, atol=2e-4)


def test_loading_draws_no_progress_bars_between_the_lines_of_the_log(folder: Path) -> None:
    enable_progress_bar()  # type: ignore[no-untyped-call]
    load(SPEC, folder)
    assert not is_progress_bar_enabled()


def test_the_same_sentence_always_sounds_the_same(engine: TransformersEngine, folder: Path) -> None:
    first, second = (waveforms(engine, ["some words"])[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, waveforms(load(SPEC, folder), ["some words"])[0])


def test_speed_divides_the_duration(engine: TransformersEngine) -> None:
    [usual], [fast] = (waveforms(engine, [SENTENCES[2] * 4], speed) for speed in (1.0, 2.0))
    assert len(fast) == pytest.approx(len(usual) / 2, rel=0.2)


def test_a_folder_with_a_config_is_run_by_transformers(folder: Path) -> None:
    engine = load_engine(SPEC, folder)
    assert isinstance(engine, TransformersEngine)
    assert (engine.device, engine.dtype, engine.sample_rate, engine.batches) == ("cpu", "float32", 16_000, True)


def test_text_is_written_as_the_model_knows_it(engine: TransformersEngine) -> None:
    script = engine.prepare("Some words (a few)\u200b.\n\nYes — more;")
    assert [sentence.lower() for sentence in script.sentences] in (
        ["some words a few", "yes more"],
        ["some words a few .", "yes more"],
    )
    assert script.seconds == pytest.approx(2, abs=0.5)
    assert engine.prepare("... !?").sentences == ()


@pytest.mark.parametrize(
    ("text", "unknown"), [("50 words", "'0'"), ("你好", "U\\+4F60"), ("a % b", "'%'"), ("😀", "U\\+1F600")]
)
def test_what_the_model_does_not_know_is_refused_by_name(engine: TransformersEngine, text: str, unknown: str) -> None:
    with pytest.raises(InvalidRequest, match=unknown) as refused:
        engine.prepare(text)
    assert refused.value.param == "input"


def test_speakers_of_vits_are_numbered_and_sound_different(tmp_path: Path) -> None:
    engine = load(SPEC, save_vits(tmp_path, speakers=3))
    assert set(engine.voices.values()) == {"speaker-0", "speaker-1", "speaker-2"}
    first, second, again = engine.speak([Sentence("some words", f"speaker-{n}") for n in (0, 1, 0)])
    assert isinstance(first, np.ndarray) and isinstance(second, np.ndarray) and isinstance(again, np.ndarray)
    np.testing.assert_allclose(first, again, atol=1e-5)
    assert len(first) != len(second) or not np.allclose(first, second, atol=1e-3)


def test_speakers_of_speecht5_are_the_files_beside_it(tmp_path: Path) -> None:
    engine = load(SPEC, save_speecht5(tmp_path))
    assert set(engine.voices.values()) == {"ann", "bob"}


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("vocoder/config.json", "no folder vocoder; put a SpeechT5HifiGan"),
        ("speaker_embeddings/ann.npy", "no speakers; put x-vectors"),
        ("spm_char.model", "cannot be loaded"),
    ],
)
def test_what_is_missing_is_one_clear_line(tmp_path: Path, missing: str, message: str) -> None:
    folder = save_speecht5(tmp_path, speakers=("ann",))
    (folder / missing).unlink()
    with pytest.raises(ModelLoadError, match=message) as failed:
        load(SPEC, folder)
    assert "\n" not in str(failed.value)


def test_a_model_of_phonemes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="reads phonemes"):
        load(SPEC, save_vits(tmp_path, phonemize=True))


@pytest.mark.parametrize(
    ("config", "message"), [('{"model_type": "bark"}', "vits or speecht5, not bark"), ("{", "cannot be loaded")]
)
def test_other_models_are_refused(tmp_path: Path, config: str, message: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelLoadError, match=message):
        load(SPEC, tmp_path)
