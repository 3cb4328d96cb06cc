"""Kokoro's voices around a fake of kokoro-onnx, of which only what is published is used: its weights are not here."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from handlers.audio.waveform import Waveform
from handlers.errors import InvalidRequest, ModelLoadError
from handlers.spec import ModelSpec, Task
from handlers.speech import kokoro
from handlers.speech.kokoro import KokoroEngine
from handlers.speech.loading import load_engine
from handlers.speech.types import Sentence

SPEC = ModelSpec("kokoro", Task.SPEECH, "dir:somewhere", engine="kokoro")
VOICES = ("af_heart", "am_onyx", "bf_emma", "ff_siwis", "zf_xiaobei")


class FakeKokoro:
    """A tenth of a second for every phoneme, which are the letters; asked notes each call."""

    def __init__(self, voices: Sequence[str] = VOICES) -> None:
        self._voices = voices
        self.tokenizer = self
        self.asked: list[tuple[str, str, float]] = []
        self.languages: list[str] = []

    def get_voices(self) -> list[str]:
        return sorted(self._voices)

    def phonemize(self, text: str, lang: str = "en-us", norm: bool = True) -> str:
        self.languages.append(lang)
        return "".join(char for char in text if char.isascii() and (char.isalpha() or char in " .,"))

    def create(
        self, text: str, voice: str, speed: float = 1.0, lang: str = "en-us", is_phonemes: bool = False
    ) -> tuple[Waveform, int]:
        assert is_phonemes and 0.5 <= speed <= 2
        self.asked.append((text, voice, speed))
        return np.full(int(2400 * len(text) / speed), 0.1, np.float32), 24_000


def engine_of(fake: FakeKokoro, *, paces: bool = True) -> KokoroEngine:
    return KokoroEngine(fake, dtype="float32", paces=paces)


def seconds(engine: KokoroEngine, text: str, speed: float, voice: str = "af_heart") -> float:
    [answer] = engine.speak([Sentence(text, voice, speed)])
    assert isinstance(answer, np.ndarray)
    return len(answer) / engine.sample_rate


@dataclass
class FakeInput:
    name: str
    type: str


class FakeSession:
    """An export; `speed` is the type of its input of that name."""

    speed = "tensor(float)"

    def __init__(self, path: str, options: object, providers: Sequence[str]) -> None:
        if Path(path).read_bytes() != b"onnx":
            raise ValueError("not a model:\nno protobuf")

    def get_inputs(self) -> list[FakeInput]:
        return [FakeInput("tokens", "tensor(int64)"), FakeInput("speed", self.speed)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A complete model, and the extra as if it were installed."""

    class Kokoro(FakeKokoro):
        @classmethod
        def from_session(cls, session: FakeSession, voices_path: str) -> FakeKokoro:
            return cls(Path(voices_path).read_text().split())

    module = ModuleType("kokoro_onnx")
    module.Kokoro = Kokoro  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kokoro_onnx", module)
    monkeypatch.setattr(kokoro, "InferenceSession", FakeSession)
    (tmp_path / "kokoro-v1.0.onnx").write_bytes(b"onnx")
    (tmp_path / "voices-v1.0.bin").write_text(" ".join(VOICES))
    return tmp_path


def test_a_folder_with_model_and_voices_is_opened(folder: Path) -> None:
    engine = load_engine(SPEC, folder)
    assert isinstance(engine, KokoroEngine)
    assert (engine.device, engine.dtype, engine.sample_rate, engine.batches) == ("cpu", "float32", 24_000, False)
    assert set(VOICES) < set(engine.voices)


@pytest.mark.parametrize(("name", "dtype"), [("kokoro-v1.0.int8.onnx", "int8"), ("kokoro-v1.0.fp16.onnx", "float16")])
def test_the_number_format_is_that_of_the_file(name: str, dtype: str, folder: Path) -> None:
    (folder / "kokoro-v1.0.onnx").rename(folder / name)
    assert load_engine(SPEC, folder).dtype == dtype


def test_every_voice_is_there_and_openai_names_mean_those_that_sound_like_them() -> None:
    voices = engine_of(FakeKokoro()).voices
    assert {voices[name] for name in VOICES} == set(VOICES)
    assert (voices["onyx"], voices["sage"], voices["marin"]) == ("am_onyx", "bf_emma", "af_heart")
    assert len(voices) == 13 + 5
    others = {voices[name] for name in ("alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "nova")}
    assert others == {"af_heart", "am_onyx", "bf_emma"}, "English names are not dealt to voices of other languages"
    assert set(engine_of(FakeKokoro(["ff_siwis"])).voices.values()) == {"ff_siwis"}


@pytest.mark.parametrize(
    ("voice", "language"),
    [("af_heart", "en-us"), ("bf_emma", "en-gb"), ("ff_siwis", "fr-fr"), ("zf_xiaobei", "cmn")],
)
def test_a_voice_reads_its_own_language(voice: str, language: str) -> None:
    fake = FakeKokoro()
    seconds(engine_of(fake), "Bonjour.", 1, voice)
    assert (fake.languages, fake.asked) == ([language], [("Bonjour.", voice, 1)])


@pytest.mark.parametrize(("speed", "native"), [(0.25, 0.5), (0.5, 0.5), (1.3, 1.3), (2, 2), (4, 2)])
def test_the_model_sets_the_pace_as_far_as_it_can(speed: float, native: float) -> None:
    fake = FakeKokoro()
    assert seconds(engine_of(fake), "Some words.", speed) == pytest.approx(1.1 / speed, rel=0.1)
    assert fake.asked[0][2] == native


def test_an_export_of_whole_paces_keeps_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeSession, "speed", "tensor(int32)")
    engine = load_engine(SPEC, folder)
    assert isinstance(engine, KokoroEngine)
    assert seconds(engine, "Some words.", 1.5) == pytest.approx(1.1 / 1.5, rel=0.1)
    assert {pace for _, _, pace in engine._kokoro.asked} == {1}


def test_text_is_spoken_a_sentence_at_a_time() -> None:
    script = engine_of(FakeKokoro()).prepare("One two.\u200b Three!\n...\n5 %")
    assert script.sentences == ("One two.", "Three!", "5 %")
    assert script.seconds == pytest.approx(17 / 14)
    assert max(map(len, engine_of(FakeKokoro()).prepare("word " * 200).sentences)) <= 300


def test_a_sentence_without_phonemes_is_refused_alone() -> None:
    refused, spoken = engine_of(FakeKokoro()).speak([Sentence("好, 好.", "af_heart"), Sentence("Yes.", "af_heart")])
    assert isinstance(refused, InvalidRequest) and isinstance(spoken, np.ndarray)
    assert (refused.param, "cannot read '好, 好.'" in refused.message) == ("input", True)


@pytest.mark.parametrize(
    ("missing", "message"),
    [("kokoro-v1.0.onnx", "one file .onnx, the model, .*: there is none"), ("voices-v1.0.bin", "one file .bin, its")],
)
def test_a_missing_file_is_named(missing: str, message: str, folder: Path) -> None:
    (folder / missing).unlink()
    with pytest.raises(ModelLoadError, match=message):
        load_engine(SPEC, folder)


def test_two_models_in_a_folder_are_refused_by_name(folder: Path) -> None:
    (folder / "other.onnx").write_bytes(b"onnx")
    with pytest.raises(ModelLoadError, match=r"found: kokoro-v1\.0\.onnx, other\.onnx"):
        load_engine(SPEC, folder)


def test_a_damaged_model_is_one_clear_line(folder: Path) -> None:
    (folder / "kokoro-v1.0.onnx").write_bytes(b"html")
    with pytest.raises(ModelLoadError, match="model kokoro: cannot be loaded: not a model: no protobuf"):
        load_engine(SPEC, folder)


def test_without_the_extra_the_way_to_it_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kokoro_onnx", None)
    with pytest.raises(ModelLoadError, match="not installed; install the gateway with its extra `kokoro`"):
        load_engine(replace(SPEC, id="voices"), folder)
