"""Synthesis over HTTP against the engine in process: how long a text takes, and when its first audio is there.

python -m tests.perf.speech --url http://127.0.0.1:8000/v1 --characters 2000
"""

import argparse
import os
import statistics
import time
from pathlib import Path

import httpx2
import numpy as np

from handlers.audio.encode import MEDIA_TYPES
from handlers.sources import fetch
from handlers.speech import hibari
from handlers.speech.hibari import HibariEngine
from handlers.speech.types import Sentence
from handlers.starter import SPEECH

PARAGRAPH = (
    "The committee met on Tuesday and agreed to publish the whole report. Nobody expected the weather to change so "
    "quickly, but the harvest was already safe in the barns. Please send the corrected figures before noon. On the "
    "third of March, 1,250 people paid $9.99 each to hear it read at 7:30 pm. What happened next surprised everyone. "
)


def text_of(characters: int) -> str:
    """Whole words of the paragraph, again and again."""
    return (PARAGRAPH * (characters // len(PARAGRAPH) + 1))[:characters].rpartition(" ")[0]


def in_process(engine: HibariEngine, text: str) -> tuple[float, float]:
    """Seconds that the engine takes for the samples alone, and seconds of audio."""
    started = time.perf_counter()
    answers = engine.speak([Sentence(sentence, "heart") for sentence in engine.prepare(text).sentences])
    took = time.perf_counter() - started
    return took, sum(len(answer) for answer in answers if isinstance(answer, np.ndarray)) / engine.sample_rate


def processor_seconds(pid: int) -> float:
    """User and system, of all threads of a process (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def over_http(client: httpx2.Client, model: str, text: str, format: str) -> tuple[float, float]:
    """Seconds until all is there, and until the first bytes are."""
    body = {"model": model, "voice": "alloy", "input": text, "response_format": format}
    started, first = time.perf_counter(), 0.0
    with client.stream("POST", "/audio/speech", json=body) as reply:
        reply.raise_for_status()
        for _ in reply.iter_raw():
            first = first or time.perf_counter() - started
    return time.perf_counter() - started, first


def report(client: httpx2.Client, engine: HibariEngine, text: str, format: str, options: argparse.Namespace) -> None:
    """One line on one format. The engine takes turns with it, as a machine's speed changes within minutes."""
    pids = [options.pid, os.getpid()] if options.pid else []
    used = [0.0 for _ in pids]
    alone, timings = [], []
    for _ in range(options.rounds):
        alone.append(in_process(engine, text)[0])
        before = [processor_seconds(pid) for pid in pids]
        timings.append(over_http(client, options.model, text, format))
        used = [sum_ + processor_seconds(pid) - was for sum_, pid, was in zip(used, pids, before, strict=True)]
    total, first = (statistics.median(column) for column in zip(*timings, strict=True))
    speed = statistics.median(alone) / total
    shares = zip(used, ("in the server", "here"), strict=False)  # none without a pid
    cpu = "".join(f"; {seconds / options.rounds:.2f} s of CPU {where}" for seconds, where in shares)
    print(  # noqa: T201
        f"{format:<5} {total:.3f} s, {speed:.2f} of the engine's speed; "
        f"first audio {first:.3f} s, {first / total:.3f} of the total{cpu}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1", help="of a running gateway, ending in /v1")
    parser.add_argument("--model", default="tts-1", help="a speech model of the starter voice (tts-1)")
    parser.add_argument("--characters", type=int, default=2000, help="length of the text (2000)")
    parser.add_argument("--rounds", type=int, default=5, help="of which the median is shown (5)")
    parser.add_argument("--pid", type=int, help="the gateway's process, to show its processor time too")
    options = parser.parse_args()
    text = text_of(options.characters)
    engine = hibari.load(SPEECH, fetch(SPEECH.source, Path()))
    in_process(engine, text)
    took, audio = in_process(engine, text)
    print(f"engine in process: {took:.3f} s for {audio:.1f} s of audio, {audio / took:.0f} times as fast as speech")  # noqa: T201
    with httpx2.Client(base_url=options.url, timeout=600) as client:
        over_http(client, options.model, text, "pcm")
        for format in MEDIA_TYPES:
            report(client, engine, text, format, options)


if __name__ == "__main__":
    main()
