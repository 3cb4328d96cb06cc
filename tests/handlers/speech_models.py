"""Stand-ins for what hears: a network that takes loud frames for a voice, and an engine that waits for a latch."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from handlers.audio.waveform import Waveform
from handlers.transcription.engine import Engine, EngineFacts, Heard, Options, Window
from handlers.transcription.types import Segment

FACTS = EngineFacts(("de", "en"), True, True, True, 223, "cpu", "int8")


class LoudnessModel:
    """Hears a voice wherever a frame is loud."""

    def run(self, outputs: None, inputs: dict[str, object]) -> list[object]:
        frames = np.asarray(inputs["input"])
        return [np.abs(frames[:, 64:]).mean(axis=1)[:, np.newaxis], inputs["h"], inputs["c"]]


class EverythingIsSpeech:
    def run(self, outputs: None, inputs: dict[str, object]) -> list[object]:
        return [np.ones((len(np.asarray(inputs["input"])), 1)), inputs["h"], inputs["c"]]


def say_length(window: Window) -> Heard | Exception:
    """One segment, which says how long the window is."""
    segment = Segment(0, 0, 0.0, window.seconds, f" {window.seconds:g}", (1, 2), 0.0, -0.1, 1.0, 0.0)
    return Heard([segment], window.options.language or "de", round(window.seconds * 50), 2)


class FakeEngine:
    """While the latch is down it waits, as a long decoding would. batches: the seconds of the windows of each."""

    def __init__(self, facts: EngineFacts = FACTS, hear: Callable[[Window], Heard | Exception] = say_length) -> None:
        self.facts = facts
        self._hear = hear
        self.started = threading.Event()
        self.latch = threading.Event()
        self.latch.set()
        self.batches: list[list[float]] = []
        self.options: list[Options] = []

    def transcribe(self, windows: Sequence[Window]) -> Sequence[Heard | Exception]:
        self.batches.append([window.seconds for window in windows])
        self.options += [window.options for window in windows]
        self.started.set()
        self.latch.wait()
        return [self._hear(window) for window in windows]

    def count_prompt(self, prompt: str | None, keywords: Sequence[str]) -> int:
        return len((prompt or "").split()) + len(keywords)


def facts(**changes: object) -> EngineFacts:
    return replace(FACTS, **changes)  # type: ignore[arg-type]


def text_of(engine: Engine, waveform: Waveform) -> str:
    """What is said in at most half a minute."""
    [answer] = engine.transcribe([Window(waveform)])
    assert isinstance(answer, Heard)
    return "".join(segment.text for segment in answer.segments)
