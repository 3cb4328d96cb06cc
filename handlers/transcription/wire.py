"""What travels between a speech model's processes and the gateway, as JSON and raw samples, and back again."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from batching.messages import describe_error, rebuild_error
from handlers.errors import InvalidRequest, ModelLoadError, TooLarge, UnsupportedMedia
from handlers.spec import ModelSpec, Task
from handlers.transcription.engine import EngineFacts, Heard, Options, Window
from handlers.transcription.types import Segment, TokenLogprob, VoiceActivity, Word
from handlers.transcription.vad import Span, Speech
from handlers.transcription.windows import Cut

ERRORS: Sequence[type[Exception]] = (InvalidRequest, UnsupportedMedia, TooLarge, ModelLoadError)
"""What comes back as it was raised."""

Fields = Mapping[str, Any]


def send_spec(spec: ModelSpec) -> Fields:
    """Without its limits, which are the queue's: some of them are infinite, and JSON has no word for that."""
    return {field.name: getattr(spec, field.name) for field in fields(spec) if field.name != "limits"}


def spec_of(sent: Fields) -> ModelSpec:
    sizes = sent["matryoshka_dimensions"]
    tuples = {"aliases": tuple(sent["aliases"]), "matryoshka_dimensions": None if sizes is None else tuple(sizes)}
    return ModelSpec(**{**sent, **tuples, "task": Task(sent["task"])})


def facts_of(sent: Fields) -> EngineFacts:
    return EngineFacts(**sent)


def activity_of(sent: Fields) -> VoiceActivity:
    return VoiceActivity(**sent)


def window_of(sent: Fields) -> Window:
    options = sent["options"]
    tuples = {name: tuple(options[name]) for name in ("languages", "keywords")}
    return Window(sent["samples"], Options(**{**options, **tuples}))


def send_heard(heard: Heard | Exception) -> Fields:
    return {"error": describe_error(heard)} if isinstance(heard, Exception) else {"heard": heard}


def heard_of(sent: Fields) -> Heard | Exception:
    if "error" in sent:
        return rebuild_error(sent["error"], ERRORS)
    heard = sent["heard"]
    return Heard(**{**heard, "segments": [_segment_of(segment) for segment in heard["segments"]]})


def _segment_of(sent: Fields) -> Segment:
    made = {
        "tokens": tuple(sent["tokens"]),
        "words": tuple(Word(**word) for word in sent["words"]),
        "logprobs": tuple(TokenLogprob(**token) for token in sent["logprobs"]),
    }
    return Segment(**{**sent, **made})


def send_cut(cut: Cut) -> Fields:
    return {"samples": cut.samples, "spans": [list(span) for span in cut.spans]}


def cut_of(sent: Fields) -> Cut:
    speeches, first = [], 0
    for span in (Span(*bounds) for bounds in sent["spans"]):
        after = first + span.end - span.start
        speeches.append(Speech(span, sent["samples"][first:after]))
        first = after
    return Cut(speeches)
