"""Whisper on CTranslate2, by way of faster-whisper: batches of windows of any requests."""

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
from faster_whisper import WhisperModel
from faster_whisper.tokenizer import Tokenizer
from faster_whisper.transcribe import get_suppressed_tokens
from numpy.typing import NDArray

from handlers.errors import ModelLoadError
from handlers.spec import ModelSpec
from handlers.transcription.engine import SAMPLE_RATE, EngineFacts, Heard, Options, Window
from handlers.transcription.fallback import Attempt, best, ladder, next_temperature
from handlers.transcription.grouping import grouped
from handlers.transcription.resumption import Hearing, hear_to_the_end, unheard_from
from handlers.transcription.segments import Piece, segment_of, split, token_logprobs
from handlers.transcription.types import TokenLogprob, Word
from handlers.transcription.words import AlignedWords, words_of

logger = logging.getLogger(__name__)

Features = NDArray[np.float32]

_WINDOW_SECONDS = 30
_STEPS_A_SECOND = 50
_FRAMES_A_SECOND = 100

# Speech that is followed by five seconds of silence is understood as well as in a window of thirty, for a fraction of
# the time; after two seconds or fewer the model repeats itself. Few lengths, so that windows share batches, and fixed
# ones, so that a text does not depend on its neighbours.
_MARGIN_SECONDS = 5
_LENGTHS = (10, 15, 20, _WINDOW_SECONDS)

# On noisy speech tiny.en makes as many errors with 5 beams as with 1, and takes 1.7 times as long.
_BEAM_SIZE = 1

# Warmer attempts are drawn; of so many the most probable is taken, as faster-whisper does.
_DRAWS = 5

# The logits of a window may take 45 MB: 224 tokens of a vocabulary of 51,866 in 32 bits.
_LOGITS_AT_ONCE = 4

# Each draw has its own copy of what the decoder remembers of the window.
_DRAWN_AT_ONCE = 2

_FILES = ("model.bin", "config.json", "tokenizer.json")


@dataclass(slots=True)
class _Work:
    """A window on its way through the model. length: seconds to which it is padded."""

    window: Window
    length: int
    language: str | None
    tokenizer: Tokenizer | None = None
    prompt: Sequence[int] = ()
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def frames(self) -> int:
        """Of its own, without the padding."""
        return min(_WINDOW_SECONDS * _FRAMES_A_SECOND, len(self.window.samples) * _FRAMES_A_SECOND // SAMPLE_RATE)

    @property
    def options(self) -> Options:
        return self.window.options

    @property
    def next_temperature(self) -> float | None:
        """A short window is tried once: if that fails, it is padded to a whole one."""
        temperatures = ladder(self.options.temperature)
        return next_temperature(self.attempts, temperatures[:1] if self.length < _WINDOW_SECONDS else temperatures)


class WhisperEngine:
    """One model, for one thread."""

    def __init__(self, model: WhisperModel, device: str, dtype: str) -> None:
        self._model = model
        # What a caller writes is text: a prompt cannot hold control tokens.
        model.hf_tokenizer.encode_special_tokens = True
        self._multilingual: bool = model.model.is_multilingual
        self._eot: int = model.hf_tokenizer.token_to_id("<|endoftext|>")
        self.facts = EngineFacts(
            languages=_languages(model),
            translates=self._multilingual,
            word_timestamps=True,
            logprobs=True,
            max_prompt_tokens=model.max_length // 2 - 1,
            device=device,
            dtype=dtype,
            window_seconds=_WINDOW_SECONDS,
        )

    def transcribe(self, windows: Sequence[Window]) -> Sequence[Heard | Exception]:
        """As Engine.transcribe. Windows of like length and options run together."""
        return hear_to_the_end(self._hear, windows)

    def count_prompt(self, prompt: str | None, keywords: Sequence[str]) -> int:
        """As Engine.count_prompt."""
        return len(self._encoded(prompt or "")) + len(self._encoded(_hotwords(keywords)))

    def warm_up(self) -> None:
        self.transcribe([Window(np.zeros(SAMPLE_RATE, np.float32), Options(language=self.facts.languages[0]))])

    def _hear(self, windows: Sequence[Window]) -> Sequence[Hearing]:
        works = [_Work(window, _length(window), self._given_language(window)) for window in windows]
        heard: dict[int, Hearing] = {}
        while pending := [i for i in range(len(works)) if i not in heard]:
            for group in grouped(pending, lambda i: works[i].length):
                batch = self._batch([works[i] for i in group])
                self._decode(batch)
                of_group = self._heard(batch)
                for i, answer in zip(group, of_group, strict=True):
                    work = works[i]
                    if work.attempts[0].failed and work.length < _WINDOW_SECONDS:
                        works[i] = _Work(work.window, _WINDOW_SECONDS, self._given_language(work.window))
                    else:
                        heard[i] = answer
        return [heard[i] for i in range(len(works))]

    def _given_language(self, window: Window) -> str | None:
        return window.options.language if self._multilingual else "en"

    def _batch(self, works: Sequence[_Work]) -> "_Batch":
        """Encoded, their languages known and their prompts written."""
        batch = _Batch(works, self._encode(works))
        self._detect_languages(batch)
        for work in works:
            self._prompt(work)
        return batch

    def _encode(self, works: Sequence[_Work]) -> ctranslate2.StorageView:
        """On a processor one by one: together they take a quarter longer, and 54 MB each for attention."""
        if self.facts.device != "cpu":
            return self._model.encode(np.stack([self._features(work) for work in works]))
        encoded = [self._model.encode(self._features(work)) for work in works]
        rows = np.concatenate([np.asarray(one.to(ctranslate2.DataType.float32)) for one in encoded])
        return ctranslate2.StorageView.from_array(rows).to(encoded[0].dtype)

    def _features(self, work: _Work) -> Features:
        """[mels, frames]. A short window is followed by silence, a whole one by nothing, as in faster-whisper."""
        samples, most = work.window.samples, work.length * _FRAMES_A_SECOND
        if work.length < _WINDOW_SECONDS:
            samples = np.pad(samples, (0, work.length * SAMPLE_RATE - len(samples)))
        features: Features = self._model.feature_extractor(samples)[:, :-1][:, :most]
        return np.pad(features, ((0, 0), (0, most - features.shape[1])))

    def _detect_languages(self, batch: "_Batch") -> None:
        unknown = [work for work in batch.works if work.language is None]
        if not unknown:
            return
        for work, ranked in zip(unknown, self._model.model.detect_language(batch.encoded(unknown)), strict=True):
            allowed = work.options.languages or self.facts.languages
            work.language = next(code for token, _ in ranked if (code := token[2:-2]) in allowed)

    def _prompt(self, work: _Work) -> None:
        options = work.options
        work.tokenizer = Tokenizer(self._model.hf_tokenizer, self._multilingual, options.task, work.language)
        work.prompt = self._model.get_prompt(
            work.tokenizer, self._encoded(options.prompt or ""), hotwords=_hotwords(options.keywords)
        )

    def _encoded(self, text: str) -> list[int]:
        """As faster-whisper writes earlier text: with a space before it."""
        ids: list[int] = self._model.hf_tokenizer.encode(f" {text.strip()}", add_special_tokens=False).ids
        return ids if text.strip() else []

    def _decode(self, batch: "_Batch") -> None:
        """Until every window has an attempt that holds, or no temperature is left. Only those that fail run again."""
        while pending := [work for work in batch.works if work.next_temperature is not None]:
            # CTranslate2 takes prompts of one length together.
            for group in grouped(pending, lambda work: (len(work.prompt), work.next_temperature, _logprobs(work))):
                for together in _in_parts(group):
                    self._attempt(batch, together)

    def _attempt(self, batch: "_Batch", works: Sequence[_Work]) -> None:
        temperature, logprobs = works[0].next_temperature or 0.0, _logprobs(works[0])
        warm = {"num_hypotheses": _DRAWS, "sampling_topk": 0, "sampling_temperature": temperature}
        results = self._model.model.generate(
            batch.encoded(works),
            [list(work.prompt) for work in works],
            beam_size=_BEAM_SIZE,
            max_length=self._model.max_length,
            max_initial_timestamp_index=_STEPS_A_SECOND,
            return_scores=True,
            return_no_speech_prob=True,
            return_logits_vocab=logprobs,
            suppress_tokens=get_suppressed_tokens(works[0].tokenizer, [-1]),
            **(warm if temperature else {}),
        )
        for work, result in zip(works, results, strict=True):
            work.attempts.append(_attempt_of(work, result, temperature, logprobs))

    def _heard(self, batch: "_Batch") -> Sequence[Hearing]:
        outcomes = [best(work.attempts) for work in batch.works]
        pieces = [self._pieces(work, outcome) for work, outcome in zip(batch.works, outcomes, strict=True)]
        words = self._words(batch, pieces)
        return [self._heard_in(*everything) for everything in zip(batch.works, outcomes, pieces, words, strict=True)]

    def _pieces(self, work: _Work, outcome: Attempt) -> list[Piece]:
        """What has no text, or no length, is no segment: so Whisper marks what it makes up at the end of speech."""
        assert work.tokenizer is not None
        if outcome.is_silence:
            return []
        pieces = split(outcome.tokens, work.tokenizer.timestamp_begin, work.window.seconds)
        return [p for p in pieces if p.start < p.end and work.tokenizer.decode(p.tokens).strip()]

    def _words(self, batch: "_Batch", pieces: Sequence[list[Piece]]) -> Sequence[Sequence[Sequence[Word]]]:
        """Of each piece of each window; empty where they were not asked for."""
        words: list[Sequence[Sequence[Word]]] = [[()] * len(of_window) for of_window in pieces]
        timed = [i for i, work in enumerate(batch.works) if work.options.word_timestamps and pieces[i]]
        texts = {i: self._text_tokens(pieces[i]) for i in timed}
        # Of windows of one length CTranslate2 aligns each over the longest text, so that only texts of one length go
        # together: the times of a window do not depend on its neighbours.
        for group in grouped(timed, lambda i: (batch.works[i].language, batch.works[i].options.task, len(texts[i]))):
            works = [batch.works[i] for i in group]
            tokenizer = works[0].tokenizer
            assert tokenizer is not None
            aligned: Sequence[AlignedWords] = self._model.find_alignment(
                tokenizer, [texts[i] for i in group], batch.encoded(works), [work.frames for work in works]
            )
            for i, alignment in zip(group, aligned, strict=True):
                words[i] = words_of(pieces[i], alignment, tokenizer, batch.works[i].window.seconds)
        return words

    def _text_tokens(self, pieces: Sequence[Piece]) -> list[int]:
        return [token for piece in pieces for token in piece.tokens if token < self._eot]

    def _heard_in(
        self, work: _Work, outcome: Attempt, pieces: Sequence[Piece], words: Sequence[Sequence[Word]]
    ) -> Hearing:
        tokenizer = work.tokenizer
        assert tokenizer is not None
        segments = [
            segment_of(
                piece, outcome, tokenizer.decode(piece.tokens), piece_words, self._logprobs(piece, outcome, tokenizer)
            )
            for piece, piece_words in zip(pieces, words, strict=True)
        ]
        language = work.language if segments else None
        heard = Heard(segments, language, work.frames // 2, len(outcome.tokens))
        return Hearing(heard, self._unheard_from(work, outcome, tokenizer))

    def _unheard_from(self, work: _Work, outcome: Attempt, tokenizer: Tokenizer) -> float | None:
        if outcome.is_silence:
            return None
        return unheard_from(outcome.tokens, tokenizer.timestamp_begin, work.window.seconds)

    def _logprobs(self, piece: Piece, outcome: Attempt, tokenizer: Tokenizer) -> Sequence[TokenLogprob]:
        if not outcome.logprobs:
            return ()
        logprobs = outcome.logprobs[piece.first : piece.first + len(piece.tokens)]
        texts = [tokenizer.tokenizer.id_to_token(token) for token in piece.tokens]
        return token_logprobs(piece.tokens, logprobs, texts, tokenizer.eot)


class _Batch:
    """Windows and what the encoder made of them, [windows, steps, width]."""

    def __init__(self, works: Sequence[_Work], encoded: ctranslate2.StorageView) -> None:
        self.works = works
        self._encoded = encoded
        self._rows: NDArray[Any] | None = None

    def encoded(self, works: Sequence[_Work]) -> ctranslate2.StorageView:
        """Of these windows only."""
        if len(works) == len(self.works):
            return self._encoded
        if self._rows is None:
            # NumPy knows neither bfloat16 nor the memory of a GPU.
            on_host = self._encoded.to_device(ctranslate2.Device.cpu)
            self._rows = np.asarray(on_host.to(ctranslate2.DataType.float32))
        places = {id(work): i for i, work in enumerate(self.works)}
        chosen = np.ascontiguousarray(self._rows[[places[id(work)] for work in works]])
        return ctranslate2.StorageView.from_array(chosen).to(self._encoded.dtype)


def _attempt_of(work: _Work, result: Any, temperature: float, logprobs: bool) -> Attempt:
    assert work.tokenizer is not None
    tokens = result.sequences_ids[0]
    return Attempt(
        tokens=tokens,
        text=work.tokenizer.decode(tokens),
        temperature=temperature,
        # The score is an average without the end of the text, which it counts all the same.
        avg_logprob=result.scores[0] * len(tokens) / (len(tokens) + 1),
        no_speech_prob=result.no_speech_prob,
        logprobs=[_logprob(step, token) for step, token in zip(result.logits[0], tokens, strict=False)]
        if logprobs
        else (),
    )


def _logprob(step: ctranslate2.StorageView, token: int) -> float:
    logits = np.asarray(step, np.float64)
    peak = logits.max()
    return float(logits[token] - peak - np.log(np.exp(logits - peak).sum()))


def _languages(model: WhisperModel) -> tuple[str, ...]:
    """Those that its vocabulary has: models before large-v3 lack one of the languages that faster-whisper lists."""
    known: Sequence[str] = model.supported_languages
    return tuple(code for code in known if model.hf_tokenizer.token_to_id(f"<|{code}|>") is not None)


def _length(window: Window) -> int:
    """Words are aligned in a whole window, as faster-whisper does it: elsewhere they are found up to 0.1 s off."""
    if window.options.word_timestamps:
        return _WINDOW_SECONDS
    return next((n for n in _LENGTHS if window.seconds + _MARGIN_SECONDS <= n), _WINDOW_SECONDS)


def _logprobs(work: _Work) -> bool:
    return work.options.logprobs


def _hotwords(keywords: Sequence[str]) -> str:
    return ", ".join(keywords)


def _in_parts(works: list[_Work]) -> Iterable[list[_Work]]:
    """Few windows at a time where each takes much memory: where logits come back, or several texts are drawn of it."""
    size = len(works)
    if works[0].next_temperature:
        size = _DRAWN_AT_ONCE
    if _logprobs(works[0]):
        size = 1 if works[0].next_temperature else _LOGITS_AT_ONCE
    return [works[start : start + size] for start in range(0, len(works), size)]


def load(spec: ModelSpec, folder: Path) -> WhisperEngine:
    """Open a CTranslate2 Whisper model and run it once. Raises ModelLoadError."""
    started = time.monotonic()
    # faster-whisper would look on the model hub for what the folder lacks.
    if missing := [name for name in _FILES if not (folder / name).is_file()]:
        raise ModelLoadError(
            f"{spec.id}: {folder} has no {', '.join(missing)}; "
            "its source must be a Whisper model converted for CTranslate2 (ct2-transformers-converter)"
        )
    device, _, index = _pick_device(spec).partition(":")
    compute_type = spec.dtype if spec.dtype != "auto" else "int8" if device == "cpu" else "float16"
    try:
        model = WhisperModel(str(folder), device=device, device_index=int(index or 0), compute_type=compute_type)
        engine = WhisperEngine(model, device, compute_type)
        engine.warm_up()
    except Exception as error:  # the tokenizers library raises nothing more specific
        raise ModelLoadError(
            f"{spec.id}: cannot run {folder} on {device} in {compute_type}: {_one_line(error)}; "
            "fetch the files again, or choose another dtype or device"
        ) from error
    logger.info("%s runs on %s in %s, loaded in %.1f s", spec.id, device, compute_type, time.monotonic() - started)
    return engine


def _pick_device(spec: ModelSpec) -> str:
    """CTranslate2 counts the CUDA devices itself, so that torch need not be imported for it."""
    cuda = ctranslate2.get_cuda_device_count() > 0
    if spec.device == "auto":
        return "cuda" if cuda else "cpu"
    if spec.device == "mps":
        logger.warning("%s runs on the CPU: CTranslate2 does not know mps", spec.id)
        return "cpu"
    if spec.device.startswith("cuda") and not cuda:
        raise ModelLoadError(f"{spec.id}: there is no CUDA device here; set its device to cpu or auto")
    return spec.device


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
