"""Whisper as transformers has it, with decoding of our own: one batch for windows of any requests, on any device.

`WhisperForConditionalGeneration.generate` aligns tokens over the longest text of a batch, so that the times of a window
depend on its neighbours; here each window is aligned over its own text, as Whisper's authors do (openai/whisper,
timing.py).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, EncoderDecoderCache
from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor
from transformers.models.whisper.generation_whisper import _dynamic_time_warping, _median_filter
from transformers.models.whisper.tokenization_whisper import LANGUAGES, _combine_tokens_into_words

from handlers.pretrained import placement
from handlers.transcription.engine import SAMPLE_RATE, EngineFacts, Heard, Options, Window
from handlers.transcription.fallback import Attempt, best, ladder, next_temperature
from handlers.transcription.grouping import grouped
from handlers.transcription.resumption import Hearing, hear_to_the_end, unheard_from
from handlers.transcription.segments import Piece, segment_of, split, token_logprobs
from handlers.transcription.types import Segment, Word

_WINDOW_SECONDS = 30.0
_SECONDS_A_STEP = 0.02
_SAMPLES_A_STEP = int(SAMPLE_RATE * _SECONDS_A_STEP)
_SEED = 0


@dataclass(slots=True)
class _Work:
    """A window on its way through the model. row: of the encoded batch."""

    window: Window
    row: int
    language: str | None
    prompt: list[int] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def options(self) -> Options:
        return self.window.options

    @property
    def steps(self) -> int:
        """Of the encoder, without padding."""
        return max(1, len(self.window.samples) // _SAMPLES_A_STEP)

    @property
    def next_temperature(self) -> float | None:
        return next_temperature(self.attempts, ladder(self.options.temperature))


class WhisperOnTorch:
    """One model, for one thread. model: WhisperForConditionalGeneration; tokenizer, extractor: its own."""

    def __init__(self, model: Any, tokenizer: Any, extractor: Any) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._extractor = extractor
        generation = model.generation_config
        self._multilingual = bool(getattr(generation, "is_multilingual", False))
        self._languages = {token[2:-2]: id for token, id in (getattr(generation, "lang_to_id", None) or {}).items()}
        self._sot = int(generation.decoder_start_token_id)
        self._eot = int(tokenizer.eos_token_id)
        self._no_timestamps = int(generation.no_timestamps_token_id)
        self._heads = _alignment_heads(model)
        self._most_tokens = model.config.max_target_positions // 2
        self.facts = EngineFacts(
            languages=tuple(self._languages) if self._multilingual else ("en",),
            translates=self._multilingual,
            word_timestamps=True,
            logprobs=True,
            max_prompt_tokens=self._most_tokens - 1,
            window_seconds=_WINDOW_SECONDS,
            temperatures=True,
            **placement(model),
        )
        # The first text sets the tokenizer up, which must not happen while the other thread reads with it.
        self.count_prompt("a", ())

    @torch.inference_mode()
    def transcribe(self, windows: Sequence[Window]) -> Sequence[Heard | Exception]:
        """As Engine.transcribe. The encoder runs once over all windows; then windows of like prompts run together."""
        return hear_to_the_end(self._hear, windows)

    def count_prompt(self, prompt: str | None, keywords: Sequence[str]) -> int:
        """As Engine.count_prompt."""
        return len(self._ids(prompt or "")) + len(self._ids(", ".join(keywords)))

    def _hear(self, windows: Sequence[Window]) -> Sequence[Hearing | Exception]:
        answers: list[Hearing | Exception] = [ValueError("the audio is no number everywhere")] * len(windows)
        sound = [i for i, window in enumerate(windows) if np.isfinite(window.samples).all()]
        works = [_Work(windows[i], row, self._known_language(windows[i])) for row, i in enumerate(sound)]
        if works:
            encoded = self._encode(works)
            self._detect_languages(works, encoded)
            for work in works:
                work.prompt = self._prompt(work)
            self._decode(works, encoded)
            for i, work in zip(sound, works, strict=True):
                answers[i] = self._heard(work, encoded)
        return answers

    def _known_language(self, window: Window) -> str | None:
        return window.options.language if self._multilingual else "en"

    def _encode(self, works: Sequence[_Work]) -> torch.Tensor:
        """[windows, steps, width]"""
        samples = [work.window.samples for work in works]
        features = self._extractor(samples, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        features = features.to(self._model.device, self._model.dtype)
        encoded: torch.Tensor = self._model.get_encoder()(features).last_hidden_state
        return encoded

    def _detect_languages(self, works: Sequence[_Work], encoded: torch.Tensor) -> None:
        unknown = [work for work in works if work.language is None]
        if not unknown:
            return
        start = torch.full((len(unknown), 1), self._sot, device=self._model.device)
        logits, _ = self._step(start, encoded[[work.row for work in unknown]], None)
        for work, scores in zip(unknown, logits[:, -1].float().cpu(), strict=True):
            allowed = work.options.languages or self.facts.languages
            work.language = max(allowed, key=lambda code: float(scores[self._languages[code]]))

    def _prompt(self, work: _Work) -> list[int]:
        earlier = self._ids(", ".join(work.options.keywords)) + self._ids(work.options.prompt or "")
        previous = [self._token("<|startofprev|>"), *earlier] if earlier else []
        return [*previous, *self._beginning(work)]

    def _beginning(self, work: _Work) -> list[int]:
        if not self._multilingual:
            return [self._sot]
        return [self._sot, self._languages[work.language or ""], self._token(f"<|{work.options.task}|>")]

    def _decode(self, works: Sequence[_Work], encoded: torch.Tensor) -> None:
        """Until every window has an attempt that holds, or no temperature is left. Only those that fail run again."""
        while pending := [work for work in works if work.next_temperature is not None]:
            for group in grouped(pending, lambda work: (len(work.prompt), work.next_temperature)):
                self._attempt(group, encoded[[work.row for work in group]])

    def _attempt(self, works: Sequence[_Work], encoded: torch.Tensor) -> None:
        """Prompts of one length, at one temperature, until all texts have ended."""
        temperature = works[0].next_temperature or 0.0
        tokens = torch.tensor([work.prompt for work in works], device=self._model.device)
        begin, steps = tokens.shape[1], []
        # Of each window its own: what is drawn does not depend on the neighbours.
        draws = [torch.Generator().manual_seed(_SEED) for _ in works]
        logits, cache = self._step(tokens, encoded, None)
        silences = self._no_speech(logits, begin, works)
        rules = WhisperTimeStampLogitsProcessor(self._model.generation_config, begin_index=begin)
        done = torch.zeros(len(works), dtype=torch.bool)
        while True:
            scores = rules(tokens, self._suppressed(logits[:, -1].float(), tokens.shape[1] == begin))
            logprobs = scores.log_softmax(-1)
            chosen = _choose(logprobs.cpu(), temperature, draws).masked_fill(done, self._eot)
            steps.append(logprobs.cpu().gather(1, chosen[:, None])[:, 0].masked_fill(done, 0.0))
            done |= chosen == self._eot
            tokens = torch.cat([tokens, chosen[:, None].to(tokens.device)], 1)
            if done.all() or len(steps) == self._most_tokens:
                break
            logits, cache = self._step(tokens[:, -1:], encoded, cache)
        of_rows = zip(works, tokens[:, begin:].tolist(), torch.stack(steps, 1).tolist(), silences, strict=True)
        for work, row, of_row, silence in of_rows:
            work.attempts.append(self._attempt_of(row, of_row, silence, temperature))

    def _attempt_of(self, row: list[int], logprobs: list[float], silence: float, temperature: float) -> Attempt:
        length = row.index(self._eot) if self._eot in row else len(row)
        return Attempt(
            tokens=row[:length],
            text=self._text(row[:length]),
            temperature=temperature,
            avg_logprob=sum(logprobs[: length + 1]) / (length + 1),
            no_speech_prob=silence,
            logprobs=logprobs[:length],
        )

    def _step(
        self, tokens: torch.Tensor, encoded: torch.Tensor, cache: Any, **options: Any
    ) -> tuple[torch.Tensor, Any]:
        """Logits of every token given, [windows, tokens, vocabulary], and the cache with them in it."""
        cache = cache or EncoderDecoderCache(DynamicCache(), DynamicCache())
        out = self._model(
            decoder_input_ids=tokens, encoder_outputs=(encoded,), past_key_values=cache, use_cache=True, **options
        )
        return out.logits, out.past_key_values

    def _no_speech(self, logits: torch.Tensor, begin: int, works: Sequence[_Work]) -> list[float]:
        """The probability of the token before <|notimestamps|> where the text starts."""
        at = begin - len(self._beginning(works[0]))
        probabilities: list[float] = logits[:, at].float().softmax(-1)[:, self._no_timestamps - 1].tolist()
        return probabilities

    def _suppressed(self, scores: torch.Tensor, first: bool) -> torch.Tensor:
        generation = self._model.generation_config
        forbidden = list(generation.suppress_tokens or []) + (
            list(generation.begin_suppress_tokens or []) if first else []
        )
        scores[:, forbidden] = -torch.inf
        return scores

    def _heard(self, work: _Work, encoded: torch.Tensor) -> Hearing:
        outcome = best(work.attempts)
        pieces = self._pieces(work, outcome)
        words = self._words(work, pieces, outcome, encoded) if work.options.word_timestamps else [()] * len(pieces)
        segments = [self._segment(work, *each, outcome) for each in zip(pieces, words, strict=True)]
        heard = Heard(segments, work.language if segments else None, work.steps, len(outcome.tokens))
        silent = outcome.is_silence
        rest = None if silent else unheard_from(outcome.tokens, self._no_timestamps + 1, work.window.seconds)
        return Hearing(heard, rest)

    def _pieces(self, work: _Work, outcome: Attempt) -> list[Piece]:
        """What has no text, or no length, is no segment: so Whisper marks what it makes up at the end of speech."""
        if outcome.is_silence:
            return []
        pieces = split(outcome.tokens, self._no_timestamps + 1, work.window.seconds)
        return [piece for piece in pieces if piece.start < piece.end and self._text(piece.tokens).strip()]

    def _segment(self, work: _Work, piece: Piece, words: Sequence[Word], outcome: Attempt) -> Segment:
        logprobs = outcome.logprobs[piece.first : piece.first + len(piece.tokens)] if work.options.logprobs else ()
        texts = self._tokenizer.convert_ids_to_tokens(list(piece.tokens))
        told = token_logprobs(piece.tokens, logprobs, texts, self._eot) if logprobs else ()
        return segment_of(piece, outcome, self._text(piece.tokens), words, told)

    def _words(
        self, work: _Work, pieces: Sequence[Piece], outcome: Attempt, encoded: torch.Tensor
    ) -> list[Sequence[Word]]:
        """Of each piece. Times neither go back nor leave the window."""
        spoken = [[i for i, token in enumerate(piece.tokens) if token < self._eot] for piece in pieces]
        text = [piece.tokens[i] for piece, places in zip(pieces, spoken, strict=True) for i in places]
        times = self._token_times(work, text, encoded[work.row : work.row + 1]) if text else []
        language = LANGUAGES.get(work.language or "")
        words: list[Sequence[Word]] = []
        position = 0
        for piece, places in zip(pieces, spoken, strict=True):
            probabilities = [float(np.exp(outcome.logprobs[piece.first + i])) for i in places]
            parts = _combine_tokens_into_words(self._tokenizer, [piece.tokens[i] for i in places], language)
            words.append(_timed(parts, times[position:], probabilities, work.window.seconds))
            position += len(places)
        return words

    def _token_times(self, work: _Work, text: Sequence[int], encoded: torch.Tensor) -> list[float]:
        """Where each token of the text begins, and where the last one ends, in seconds of the window."""
        beginning = [*self._beginning(work), self._no_timestamps]
        tokens = torch.tensor([[*beginning, *text, self._eot]], device=self._model.device)
        usual = self._model.config._attn_implementation
        self._model.set_attn_implementation("eager")  # the only one that tells its weights
        try:
            out = self._model(
                decoder_input_ids=tokens, encoder_outputs=(encoded,), output_attentions=True, use_cache=False
            )
        finally:
            self._model.set_attn_implementation(usual)
        weights = torch.stack([out.cross_attentions[layer][0, head] for layer, head in self._heads]).float()
        weights = weights[..., : work.steps]
        weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-12)
        spread = weights.std(-2, keepdim=True, unbiased=False).clamp_min(1e-12)
        weights = _median_filter(
            (weights - weights.mean(-2, keepdim=True)) / spread, self._model.config.median_filter_width
        )
        matrix = weights.mean(0)[len(beginning) :]
        rows, columns = _dynamic_time_warping(-matrix.cpu().double().numpy())
        firsts = np.pad(np.diff(rows), (1, 0), constant_values=1).astype(bool)
        return [float(time) for time in columns[firsts] * _SECONDS_A_STEP]

    def _ids(self, text: str) -> list[int]:
        """Earlier text is written with a space before it."""
        if not text.strip():
            return []
        # What a caller writes is text: a prompt cannot hold control tokens.
        ids: list[int] = self._tokenizer.encode(f" {text.strip()}", add_special_tokens=False, split_special_tokens=True)
        return ids

    def _text(self, tokens: Iterable[int]) -> str:
        text: str = self._tokenizer.decode(
            [token for token in tokens if token < self._eot], clean_up_tokenization_spaces=False
        )
        return text

    def _token(self, text: str) -> int:
        return int(self._tokenizer.convert_tokens_to_ids(text))


def _choose(logprobs: torch.Tensor, temperature: float, draws: Sequence[torch.Generator]) -> torch.Tensor:
    """One token a row: the most probable, or one drawn at the temperature from the row's own generator."""
    if not temperature:
        return logprobs.argmax(-1)
    probabilities = (logprobs / temperature).softmax(-1)
    rows = zip(probabilities, draws, strict=True)
    return torch.cat([torch.multinomial(row, 1, generator=generator) for row, generator in rows])


def _timed(
    parts: tuple[list[str], Any, list[list[int]]],
    times: Sequence[float],
    probabilities: Sequence[float],
    seconds: float,
) -> Sequence[Word]:
    words: list[Word] = []
    earliest = 0.0
    for text, _, places in zip(*parts, strict=True):
        start = min(max(earliest, times[places[0]]), seconds)
        earliest = min(max(start, times[places[-1] + 1]), seconds)
        probability = sum(probabilities[i] for i in places) / len(places)
        words.append(Word(text, start, earliest, probability))
    return words


def _alignment_heads(model: Any) -> list[tuple[int, int]]:
    """The decoder's heads that follow the audio: those that the model names, else all of its later half."""
    if named := getattr(model.generation_config, "alignment_heads", None):
        return [(layer, head) for layer, head in named]
    layers, heads = model.config.decoder_layers, model.config.decoder_attention_heads
    return [(layer, head) for layer in range(layers // 2, layers) for head in range(heads)]
