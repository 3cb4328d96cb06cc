"""Models that write the text of a window and nothing else (Moonshine, Speech2Text), in batches of windows.

They are run by `generate` of transformers, with the beams and the rules of their own generation config.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from handlers.audio.waveform import Waveform
from handlers.pretrained import placement
from handlers.transcription.engine import SAMPLE_RATE, EngineFacts, Heard, Window
from handlers.transcription.fallback import Attempt
from handlers.transcription.prompts import count_words
from handlers.transcription.segments import Piece, segment_of
from handlers.transcription.types import Segment, TokenLogprob

# No word is as short, and the first layers need some samples.
_LEAST_SECONDS = 0.1

# The scores of a token take 0.7 MB a window with 5 beams and a vocabulary of 33,000; texts have up to 200.
_AT_ONCE = 4

# Of the spread of what the encoder makes. Rounding to 16 bits changes less, padding that is heard far more.
_MOST_DIFFERENT = 0.05


class Seq2SeqOnTorch:
    """One model, for one thread. model: an AutoModelForSpeechSeq2Seq that needs nothing but audio; tokenizer,
    extractor: its own.

    It takes neither prompts nor keywords nor a temperature, does not translate when asked to, and tells neither when
    a word was said nor in which language.
    """

    def __init__(self, model: Any, tokenizer: Any, extractor: Any) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._extractor = extractor
        self._generation = _generation(model)
        self._ends = frozenset(torch.tensor(self._generation.eos_token_id).flatten().tolist())
        self._special = frozenset(tokenizer.all_special_ids)
        self._steps_a_second, self._is_padded = self._probe()
        self.facts = EngineFacts.of_audio_alone(word_timestamps=False, **placement(model))

    @torch.inference_mode()
    def transcribe(self, windows: Sequence[Window]) -> Sequence[Heard | Exception]:
        """As Engine.transcribe."""
        answers: list[Heard | Exception] = [ValueError("the audio is no number everywhere")] * len(windows)
        groups: dict[int, list[int]] = defaultdict(list)
        for i, window in enumerate(windows):
            if not np.isfinite(window.samples).all():
                continue
            if _is_silent(window):
                answers[i] = Heard((), None, self._steps(window), 0)
            else:
                groups[0 if self._is_padded else len(window.samples)].append(i)
        for group in groups.values():
            for together in self._parts(windows, group):
                for i, heard in zip(together, self._heard([windows[i] for i in together]), strict=True):
                    answers[i] = heard
        return answers

    def count_prompt(self, prompt: str | None, keywords: Sequence[str]) -> int:
        """As Engine.count_prompt: in words, as there are no tokens for them."""
        return count_words(prompt, keywords)

    @torch.inference_mode()
    def _probe(self) -> tuple[float, bool]:
        """Steps of the encoder a second, and whether a window is heard beside a longer one as it is alone: models that
        normalize over the whole window hear the padding, whatever their mask says, and of others the last step.
        """
        noise = np.random.default_rng(0).normal(scale=0.1, size=2 * SAMPLE_RATE).astype(np.float32)
        second = noise[:SAMPLE_RATE]
        alone, (beside, longer) = self._steps_of([second])[0], self._steps_of([second, noise])
        changes = (alone - beside[: len(alone)]).abs().amax(-1)
        return len(longer) / 2, bool(changes.max() <= _MOST_DIFFERENT * alone.std())

    def _steps_of(self, sounds: Sequence[Waveform]) -> torch.Tensor:
        """[sounds, steps, width]"""
        start = torch.full((len(sounds), 1), self._generation.decoder_start_token_id, device=self._model.device)
        steps: torch.Tensor = self._model(**self._inputs(sounds), decoder_input_ids=start).encoder_last_hidden_state
        return steps.float()

    def _inputs(self, sounds: Sequence[Waveform]) -> dict[str, torch.Tensor]:
        inputs = self._extractor(list(sounds), sampling_rate=SAMPLE_RATE, padding=True, return_tensors="pt")
        audio = inputs.pop(self._extractor.model_input_names[0]).to(self._model.device, self._model.dtype)
        masks = {name: mask.to(self._model.device) for name, mask in inputs.items()}
        return {self._model.main_input_name: audio, **masks}

    def _parts(self, windows: Sequence[Window], group: Sequence[int]) -> Iterable[Sequence[int]]:
        """Windows of like length together, so that little is computed for padding."""
        ordered = sorted(group, key=lambda i: len(windows[i].samples))
        return [ordered[start : start + _AT_ONCE] for start in range(0, len(ordered), _AT_ONCE)]

    def _heard(self, windows: Sequence[Window]) -> list[Heard]:
        inputs = self._inputs([window.samples for window in windows])
        out = self._model.generate(**inputs, generation_config=self._generation)
        beams = getattr(out, "beam_indices", None)
        logprobs = self._model.compute_transition_scores(out.sequences, out.scores, beams, normalize_logits=True)
        tokens = out.sequences[:, -logprobs.shape[1] :]
        rows = zip(windows, tokens.tolist(), logprobs.tolist(), strict=True)
        return [self._heard_in(window, *self._ended(ids, scores)) for window, ids, scores in rows]

    def _ended(self, tokens: Sequence[int], logprobs: Sequence[float]) -> tuple[Sequence[int], Sequence[float]]:
        """Up to the end of the text, which is part of it; behind it is padding."""
        last = next((i for i, token in enumerate(tokens) if token in self._ends), len(tokens) - 1)
        return tokens[: last + 1], logprobs[: last + 1]

    def _heard_in(self, window: Window, tokens: Sequence[int], logprobs: Sequence[float]) -> Heard:
        text = self._text(tokens)
        segments = [self._segment(window, text, tokens, logprobs)] if text else []
        return Heard(segments, None, self._steps(window), len(tokens))

    def _segment(self, window: Window, text: str, tokens: Sequence[int], logprobs: Sequence[float]) -> Segment:
        """The whole window, as the model does not tell more."""
        average = sum(logprobs) / len(logprobs)
        spoken = [(token, logprob) for token, logprob in zip(tokens, logprobs, strict=True) if self._is_text(token)]
        ids = [token for token, _ in spoken]
        return segment_of(
            Piece(0, ids, 0.0, window.seconds),
            Attempt(ids, text, 0.0, average, 0.0),
            text,
            words=(),
            logprobs=self._logprobs(spoken) if window.options.logprobs else (),
        )

    def _logprobs(self, spoken: Sequence[tuple[int, float]]) -> Sequence[TokenLogprob]:
        """A character of several tokens is written with the last of them; so the tokens make up the text."""
        written, told = "", []
        for i, (_, logprob) in enumerate(spoken):
            text = self._text([token for token, _ in spoken[: i + 1]])
            if text.endswith("\N{REPLACEMENT CHARACTER}") and i + 1 < len(spoken):
                text = written
            new = text[len(written) :]
            told.append(TokenLogprob(new, new.encode(), logprob))
            written = text
        return told

    def _text(self, tokens: Sequence[int]) -> str:
        """With a space before it, as Whisper's segments have; empty where there are no words."""
        spoken = [token for token in tokens if self._is_text(token)]
        text = self._tokenizer.decode(spoken, clean_up_tokenization_spaces=False).strip()
        return f" {text}" if text else ""

    def _is_text(self, token: int) -> bool:
        return token not in self._special

    def _steps(self, window: Window) -> int:
        return round(window.seconds * self._steps_a_second)


def _generation(model: Any) -> GenerationConfig:
    """As the model's own, but never drawn. Where it sets no length, texts end with the decoder's room, which
    transformers would do after 20 tokens.
    """
    settings = model.generation_config.to_dict()
    decoder = model.config.get_text_config(decoder=True)
    room = getattr(decoder, "max_target_positions", None) or decoder.max_position_embeddings
    if settings["max_length"] is None and settings["max_new_tokens"] is None:
        settings["max_length"] = room
    if settings["pad_token_id"] is None:
        settings["pad_token_id"] = int(torch.tensor(settings["eos_token_id"]).flatten()[0])
    settings |= {"do_sample": False, "output_scores": True, "return_dict_in_generate": True}
    return GenerationConfig(**settings)  # type: ignore[no-untyped-call]


def _is_silent(window: Window) -> bool:
    return window.seconds < _LEAST_SECONDS or bool(np.ptp(window.samples) == 0)
