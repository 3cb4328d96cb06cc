"""A prompt is counted beside the engine as the engine itself counts it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from handlers.sources import fetch
from handlers.spec import ModelSpec, Task
from handlers.starter import TRANSCRIPTION
from handlers.transcription.engine import Engine
from handlers.transcription.loading import load_engine
from handlers.transcription.prompts import CountPrompt, load_prompt_counter
from tests.batching.fakes import thorough
from tests.handlers.test_transcription_ctc import save as save_ctc
from tests.handlers.tiny_whisper import save_whisper

Counters = tuple[CountPrompt, CountPrompt]


def counters(spec: ModelSpec, folder: Path) -> Counters:
    """The engine's own, and the one in the process that reads files."""
    engine: Engine = load_engine(spec, folder)
    return engine.count_prompt, load_prompt_counter(spec, folder)


@pytest.fixture(scope="module", params=[pytest.param("faster-whisper", marks=pytest.mark.models), "whisper", "ctc"])
def both(request: pytest.FixtureRequest, models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Counters:
    if request.param == "faster-whisper":
        return counters(replace(TRANSCRIPTION, device="cpu"), fetch(TRANSCRIPTION.source, models_dir))
    folder = tmp_path_factory.mktemp(request.param)
    folder = save_whisper(folder) if request.param == "whisper" else save_ctc(folder, masked=True)
    spec = ModelSpec("tiny", Task.TRANSCRIPTION, "dir:tiny", device="cpu", dtype="float32")
    return counters(spec, folder)


texts = st.text(max_size=40) | st.text("ab .,'\n\t\u3000éß語😀<|>", max_size=40)


@thorough
@example("Mr. <|startoftranscript|><|en|> and <|endoftext|>", ["<|notimestamps|>"])
@example("\n\u3000 ", [" ", ""])
@example(None, ["Zürich", "naïve", "語"])
@example("  many   spaces  ", [])
@given(st.none() | texts, st.lists(texts, max_size=4))
def test_both_count_the_same(both: Counters, prompt: str | None, keywords: Sequence[str]) -> None:
    engine, beside = both
    assert beside(prompt, keywords) == engine(prompt, keywords)
