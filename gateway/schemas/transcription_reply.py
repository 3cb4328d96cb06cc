"""POST /v1/audio/transcriptions and /v1/audio/translations: what is answered."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from gateway.schemas.reply import finite
from gateway.schemas.transcription_languages import language_name
from gateway.sse import frame
from gateway.subtitles import srt, vtt
from handlers.transcription.types import Segment, TokenLogprob, Transcript, Word

Format = Literal["json", "text", "srt", "verbose_json", "vtt"]


@dataclass(frozen=True, slots=True)
class TranscriptForm:
    """What was asked for. model: the name that was asked for. language: the one that was asked for, if any."""

    model: str
    format: Format
    task: Literal["transcribe", "translate"] = "transcribe"
    language: str | None = None
    logprobs: bool = False
    words: bool = False
    segments: bool = True

    def body(self, transcript: Transcript) -> dict[str, Any] | str:
        """A text for the formats that are plain text."""
        match self.format:
            case "text":
                return f"{transcript.text}\n"
            case "srt":
                return srt(transcript.segments)
            case "vtt":
                return vtt(transcript.segments)
            case "verbose_json":
                return self._verbose(transcript)
            case "json":
                return self._json(transcript)

    def details(self, transcript: Transcript) -> dict[str, Any]:
        """What follows the text, in a body and at the end of a stream alike."""
        fields: dict[str, Any] = {}
        if self.model.startswith("gpt-transcribe"):
            fields["languages"] = [{"code": transcript.language}] if transcript.language else []
        if self.logprobs:
            fields["logprobs"] = logprobs(token for segment in transcript.segments for token in segment.logprobs)
        return fields

    def _json(self, transcript: Transcript) -> dict[str, Any]:
        # OpenAI's newer models are billed by tokens, and programs written for them read those.
        usage = token_usage(transcript) if self.model.startswith("gpt-") else duration_usage(transcript)
        return {"text": transcript.text, **self.details(transcript), "usage": usage}

    def _verbose(self, transcript: Transcript) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "task": self.task,
            "language": language_name(self.language or transcript.language),
            "duration": round(transcript.duration, 3),
            "text": transcript.text,
        }
        if self.segments:
            fields["segments"] = [_segment(segment) for segment in transcript.segments]
        if self.words:
            fields["words"] = [_word(word) for segment in transcript.segments for word in segment.words]
        return {**fields, "usage": duration_usage(transcript)}


class TranscriptEvents:
    """Writes the events of one stream. The deltas, one after the other, are the text of the last event."""

    def __init__(self, form: TranscriptForm) -> None:
        self._form = form
        self._texts: list[str] = []
        self._space = ""
        self._logprobs: list[TokenLogprob] = []

    def delta(self, segment: Segment) -> bytes:
        """None for a segment without words. White space waits for the word that it comes before."""
        self._logprobs += segment.logprobs
        text = self._space + segment.text if self._texts else segment.text.lstrip()
        delta = text.rstrip()
        self._space = text[len(delta) :]
        if not delta:
            return b""
        self._texts.append(delta)
        event: dict[str, Any] = {"type": "transcript.text.delta", "delta": delta}
        if self._form.logprobs:
            event["logprobs"] = logprobs(self._logprobs)
            self._logprobs = []
        return frame(orjson.dumps(event))

    def done(self, transcript: Transcript) -> bytes:
        event = {
            "type": "transcript.text.done",
            "text": "".join(self._texts),
            **self._form.details(transcript),
            "usage": token_usage(transcript),
        }
        return frame(orjson.dumps(event))


def logprobs(tokens: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
    return [{"token": token.token, "bytes": list(token.bytes), "logprob": finite(token.logprob)} for token in tokens]


def duration_usage(transcript: Transcript) -> dict[str, Any]:
    return {"type": "duration", "seconds": round(transcript.duration, 3)}


def token_usage(transcript: Transcript) -> dict[str, Any]:
    input_tokens = transcript.audio_tokens + transcript.text_tokens
    return {
        "type": "tokens",
        "input_tokens": input_tokens,
        "input_token_details": {"audio_tokens": transcript.audio_tokens, "text_tokens": transcript.text_tokens},
        "output_tokens": transcript.output_tokens,
        "total_tokens": input_tokens + transcript.output_tokens,
    }


def _segment(segment: Segment) -> dict[str, Any]:
    return {
        "id": segment.id,
        "seek": segment.seek,
        "start": round(segment.start, 3),
        "end": round(segment.end, 3),
        "text": segment.text,
        "tokens": list(segment.tokens),
        "temperature": segment.temperature,
        "avg_logprob": segment.avg_logprob,
        "compression_ratio": segment.compression_ratio,
        "no_speech_prob": segment.no_speech_prob,
    }


def _word(word: Word) -> dict[str, Any]:
    return {"word": word.word.strip(), "start": round(word.start, 3), "end": round(word.end, 3)}
