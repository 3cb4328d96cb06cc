"""Models that name a letter for every fiftieth of a second (CTC: Wav2Vec2, HuBERT), in batches of windows."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from handlers.pretrained import placement
from handlers.transcription.engine import SAMPLE_RATE, EngineFacts, Heard, Window
from handlers.transcription.fallback import Attempt
from handlers.transcription.prompts import count_words
from handlers.transcription.segments import Piece, segment_of
from handlers.transcription.types import Segment, TokenLogprob, Word


@dataclass(frozen=True, slots=True)
class _Letter:
    """One letter, or what parts words. first, last: its frames. logprob: of the most probable of them."""

    id: int
    first: int
    last: int
    logprob: float


class CTCOnTorch:
    """One model, for one thread. model: an AutoModelForCTC; tokenizer, extractor: its own.

    It takes neither prompts nor keywords nor a temperature, does not translate, and does not tell which language it
    hears.
    """

    def __init__(self, model: Any, tokenizer: Any, extractor: Any) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._extractor = extractor
        self._blank = int(tokenizer.pad_token_id)
        self._space = int(tokenizer.word_delimiter_token_id)
        self._seconds_a_frame = model.config.inputs_to_logits_ratio / SAMPLE_RATE
        self.facts = EngineFacts.of_audio_alone(word_timestamps=True, **placement(model))

    @torch.inference_mode()
    def transcribe(self, windows: Sequence[Window]) -> Sequence[Heard | Exception]:
        """As Engine.transcribe."""
        answers: list[Heard | Exception] = [ValueError("the audio is no number everywhere")] * len(windows)
        groups: dict[int, list[int]] = defaultdict(list)
        for i, window in enumerate(windows):
            if self._frames(window) < 1:
                answers[i] = Heard((), None, 0, 0)
            elif np.isfinite(window.samples).all():
                # Models that were trained without a mask hear padding: only windows of one length go together.
                groups[0 if self._extractor.return_attention_mask else len(window.samples)].append(i)
        for group in groups.values():
            for i, heard in zip(group, self._heard([windows[i] for i in group]), strict=True):
                answers[i] = heard
        return answers

    def count_prompt(self, prompt: str | None, keywords: Sequence[str]) -> int:
        """As Engine.count_prompt: in words, as there are no tokens for them."""
        return count_words(prompt, keywords)

    def _frames(self, window: Window) -> int:
        return int(self._model._get_feat_extract_output_lengths(len(window.samples)))

    def _heard(self, windows: Sequence[Window]) -> list[Heard]:
        inputs = self._extractor(
            [window.samples for window in windows], sampling_rate=SAMPLE_RATE, padding=True, return_tensors="pt"
        )
        values = inputs.pop("input_values").to(self._model.device, self._model.dtype)
        masks = {name: mask.to(self._model.device) for name, mask in inputs.items()}
        logprobs = self._model(values, **masks).logits.float().log_softmax(-1)
        best = logprobs.max(-1)
        rows = zip(windows, best.indices.tolist(), best.values.tolist(), strict=True)
        return [
            self._heard_in(window, self._letters(ids, scores, self._frames(window))) for window, ids, scores in rows
        ]

    def _letters(self, ids: Sequence[int], scores: Sequence[float], frames: int) -> list[_Letter]:
        """What is repeated without a blank between is one letter (Graves et al. 2006)."""
        letters: list[_Letter] = []
        previous = self._blank
        for frame, (id, score) in enumerate(zip(ids[:frames], scores[:frames], strict=True)):
            if id == previous != self._blank:
                letters[-1] = _Letter(id, letters[-1].first, frame, max(letters[-1].logprob, score))
            elif id != self._blank:
                letters.append(_Letter(id, frame, frame, score))
            previous = id
        return letters

    def _heard_in(self, window: Window, letters: Sequence[_Letter]) -> Heard:
        words = self._words(letters)
        segments = [self._segment(window, words)] if words else []
        return Heard(segments, None, self._frames(window), sum(map(len, words)))

    def _words(self, letters: Sequence[_Letter]) -> list[list[_Letter]]:
        words: list[list[_Letter]] = [[]]
        for letter in letters:
            if letter.id == self._space:
                words.append([])
            else:
                words[-1].append(letter)
        return [word for word in words if word]

    def _segment(self, window: Window, words: Sequence[Sequence[_Letter]]) -> Segment:
        letters = [letter for word in words for letter in word]
        timed = [self._word(window, word) for word in words]
        text = "".join(word.word for word in timed)
        average = sum(letter.logprob for letter in letters) / len(letters)
        tokens = [letter.id for letter in letters]
        return segment_of(
            Piece(0, tokens, timed[0].start, timed[-1].end),
            Attempt(tokens, text, 0.0, average, 0.0),
            text,
            words=timed if window.options.word_timestamps else (),
            logprobs=[token for word in words for token in self._logprobs(word)] if window.options.logprobs else (),
        )

    def _word(self, window: Window, letters: Sequence[_Letter]) -> Word:
        """With a space before it, as Whisper's words have."""
        return Word(
            word="".join(token.token for token in self._logprobs(letters)),
            start=min(letters[0].first * self._seconds_a_frame, window.seconds),
            end=min((letters[-1].last + 1) * self._seconds_a_frame, window.seconds),
            probability=float(np.exp(sum(letter.logprob for letter in letters) / len(letters))),
        )

    def _logprobs(self, letters: Sequence[_Letter]) -> list[TokenLogprob]:
        """Of a word; the space before it belongs to its first letter."""
        texts = self._tokenizer.convert_ids_to_tokens([letter.id for letter in letters])
        if self._tokenizer.do_lower_case:
            texts = [text.lower() for text in texts]
        texts[0] = f" {texts[0]}"
        return [TokenLogprob(text, text.encode(), letter.logprob) for text, letter in zip(texts, letters, strict=True)]
