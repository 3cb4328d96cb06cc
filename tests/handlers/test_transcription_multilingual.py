"""The engine on faster-whisper with a multilingual model, which says in which language and for which task it was asked.

What it hears are tones: see tiny_multilingual.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from handlers.audio.waveform import Waveform
from handlers.spec import ModelSpec, Task
from handlers.transcription.engine import SAMPLE_RATE, Heard, Options, Window
from handlers.transcription.faster_whisper import WhisperEngine, load
from handlers.transcription.handler import WhisperHandler
from tests.gateway.fakes import app
from tests.handlers.audio_files import sound_file
from tests.handlers.running import running
from tests.handlers.speech_models import EverythingIsSpeech
from tests.handlers.tiny_multilingual import KNOWN, SPOKEN, save_multilingual, tones

SPEC = ModelSpec(
    "tiny", Task.TRANSCRIPTION, "dir:tiny", device="cpu", dtype="float32", aliases=("whisper-1",), isolation="none"
)
GERMAN_BEFORE_FRENCH = {"en": 0.4, "de": 0.3, "fr": 0.2}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> WhisperEngine:
    return load(SPEC, save_multilingual(tmp_path_factory.mktemp("multilingual")))


def hear(engine: WhisperEngine, *windows: Window) -> list[Heard]:
    answers = engine.transcribe(windows)
    assert all(isinstance(answer, Heard) for answer in answers)
    return [answer for answer in answers if isinstance(answer, Heard)]


def said(heard: Heard) -> tuple[str | None, str]:
    return heard.language, "".join(segment.text for segment in heard.segments).strip()


def words(heard: Heard) -> list[tuple[str, float, float]]:
    return [(word.word, word.start, word.end) for segment in heard.segments for word in segment.words]


def spoken_at(first: float, second: float, end: float, **language: float) -> Waveform:
    """Words that begin at the first two of these seconds, and end at the last."""
    pauses = [(first, {}), (second - first, {"first": 0.5}), (end - second, {"second": 0.5}), (3.0 - end, {"end": 0.5})]
    return np.concatenate([tones(seconds, **language, **word) for seconds, word in pauses])


def test_its_languages_are_those_of_its_vocabulary(engine: WhisperEngine) -> None:
    assert set(engine.facts.languages) == set(KNOWN)
    assert engine.facts.translates


@pytest.mark.parametrize("language", SPOKEN)
def test_the_language_is_the_one_that_is_heard(engine: WhisperEngine, language: str) -> None:
    for loudness in (0.5, 0.05):
        (one,) = hear(engine, Window(tones(**{language: loudness})))
        assert said(one) == (language, f"{language} transcribe")


def test_every_window_of_a_batch_has_its_own_language(engine: WhisperEngine) -> None:
    windows = [Window(tones(2.0 + seconds, **{code: 0.3})) for seconds, code in enumerate(SPOKEN)]
    given = Window(tones(en=0.3), Options(language="ja"))
    assert [one.language for one in hear(engine, *windows, given)] == [*SPOKEN, "ja"]


@pytest.mark.parametrize(
    ("allowed", "found"),
    [((), "en"), (("de", "fr"), "de"), (("fr", "de"), "de"), (("fr", "ja"), "fr"), (("ja",), "ja")],
)
def test_it_is_the_most_probable_of_those_that_are_allowed(
    engine: WhisperEngine, allowed: tuple[str, ...], found: str
) -> None:
    (one,) = hear(engine, Window(tones(**GERMAN_BEFORE_FRENCH), Options(languages=allowed)))
    assert said(one) == (found, f"{found} transcribe")


def test_a_language_that_is_given_is_not_detected(engine: WhisperEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    model = engine._model.model

    class Deaf:
        is_multilingual = True

        def detect_language(self, *of: object) -> None:
            raise AssertionError("asked for a language")

        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

    monkeypatch.setattr(engine._model, "model", Deaf())
    answers = hear(engine, *(Window(tones(en=0.3), Options(language=code)) for code in SPOKEN))
    assert [said(one) for one in answers] == [(code, f"{code} transcribe") for code in SPOKEN]


def test_tasks_and_prompts_of_any_kind_share_a_batch(engine: WhisperEngine) -> None:
    sound = tones(de=0.3)
    answers = hear(
        engine,
        Window(sound, Options(task="translate")),
        Window(sound, Options(prompt="earlier text", keywords=("name",))),
        Window(sound, Options(task="translate", language="fr", prompt="earlier text", keywords=("name",))),
        Window(sound, Options(task="translate", logprobs=True)),
    )
    assert [said(one) for one in answers] == [
        ("de", "de translate"),
        ("de", "de transcribe"),
        ("fr", "fr translate"),
        ("de", "de translate"),
    ]
    assert [token.token for token in answers[3].segments[0].logprobs] == [" de", " translate"]


@pytest.mark.parametrize("task", ["transcribe", "translate"])
def test_words_are_timed_in_any_language(engine: WhisperEngine, task: Any) -> None:
    options = Options(task=task, word_timestamps=True)
    times = [(0.5, 1.2, 2.0), (1.0, 1.5, 2.2)]
    windows = [Window(spoken_at(*times[0], de=0.2), options), Window(spoken_at(*times[1], ja=0.2), options)]
    for one, language, (_, second, end) in zip(hear(engine, *windows), ("de", "ja"), times, strict=True):
        assert [word for word, _, _ in words(one)] == [f" {language}", f" {task}"]
        assert [time for _, _, time in words(one)] == pytest.approx([second, end], abs=0.04)


@asynccontextmanager
async def serving(engine: WhisperEngine) -> AsyncIterator[httpx2.AsyncClient]:
    handler = WhisperHandler(
        SPEC, Path, load_engine=lambda spec, folder: engine, load_voices=lambda: EverythingIsSpeech()
    )
    transport = httpx2.ASGITransport(app=app(handler))
    async with running(handler), httpx2.AsyncClient(transport=transport, base_url="http://a") as http:
        yield http


async def post(http: httpx2.AsyncClient, endpoint: str, sound: Waveform, **fields: Any) -> httpx2.Response:
    form = {"model": "tiny", "response_format": "verbose_json", **fields}
    file = ("a.wav", BytesIO(sound_file(sound).getvalue()), "audio/wav")
    return await http.post(f"/v1/audio/{endpoint}", data=form, files={"file": file})


@pytest.mark.anyio
async def test_a_verbose_transcript_names_the_language_that_was_heard(engine: WhisperEngine) -> None:
    async with serving(engine) as http:
        heard = (await post(http, "transcriptions", tones(**GERMAN_BEFORE_FRENCH))).json()
        limited = (await post(http, "transcriptions", tones(**GERMAN_BEFORE_FRENCH), languages=["ja", "fr"])).json()
        given = (await post(http, "transcriptions", tones(**GERMAN_BEFORE_FRENCH), language="de")).json()
    assert (heard["language"], heard["text"]) == ("english", "en transcribe")
    assert (limited["language"], limited["text"]) == ("french", "fr transcribe")
    assert (given["language"], given["text"]) == ("german", "de transcribe")


@pytest.mark.anyio
async def test_a_translation_is_told_to_be_english(engine: WhisperEngine) -> None:
    async with serving(engine) as http:
        body = (await post(http, "translations", tones(ja=0.3))).json()
    assert (body["task"], body["language"], body["text"]) == ("translate", "english", "ja translate")


@pytest.mark.anyio
async def test_a_file_has_the_language_of_its_first_window(engine: WhisperEngine) -> None:
    sound = np.concatenate([tones(30.0, de=0.3), tones(10.0, fr=0.3)])
    async with serving(engine) as http:
        body = (await post(http, "transcriptions", sound)).json()
    assert (body["language"], body["text"]) == ("german", "de transcribe de transcribe")
    assert len(body["segments"]) == 2
    assert body["duration"] == len(sound) / SAMPLE_RATE


@pytest.mark.anyio
@pytest.mark.parametrize("fields", [{"language": "yue"}, {"language": "xx"}, {"languages": ["de", "yue"]}])
async def test_a_language_that_the_model_lacks_is_refused_by_name(
    engine: WhisperEngine, fields: dict[str, Any]
) -> None:
    async with serving(engine) as http:
        response = await post(http, "transcriptions", tones(de=0.3), **fields)
    error = response.json()["error"]
    (param,) = fields
    assert (response.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert "`tiny` does not know the language" in error["message"]
    assert ("'xx'" if fields == {"language": "xx"} else "'yue'") in error["message"]
