"""Voices of transformers: VITS (also MMS) and SpeechT5, several sentences in one pass."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from handlers.audio.tempo import change_tempo
from handlers.audio.waveform import Waveform
from handlers.devices import pick_device, pick_dtype
from handlers.errors import InvalidRequest, ModelLoadError
from handlers.pretrained import cannot_load, hide_progress_bars, log_placement, placement
from handlers.spec import ModelSpec
from handlers.speech.sentences import split, without_control
from handlers.speech.types import Script, Sentence
from handlers.speech.voices import shared_out

# Characters of a sentence: what models were trained with at once is rarely longer.
_MOST = 250
_CHARACTERS_PER_SECOND = 14

_PAUSES = frozenset(".,;:!?…-–—\"'“”‘’()[]{}«»/*_|`~\\ \t\n¿¡。！？，、；：")

# Of SpeechT5's spectrogram, for a token of text; speech has about five.
_MOST_FRAMES = 20

_SPEAKER_FILES = "speaker_embeddings"
_VOCODER = "vocoder"


class Model(Protocol):
    """One kind of model. network: what computes. speakers: its own voices. vocabulary: the characters it knows."""

    network: Any
    speakers: Sequence[str]
    vocabulary: frozenset[str]
    sample_rate: int

    def waveforms(self, texts: Sequence[str], speaker: str) -> Sequence[Waveform]: ...


class TransformersEngine:
    """Any model of the two kinds. For one thread."""

    batches = True

    def __init__(self, model: Model, device: str, dtype: str) -> None:
        self._model = model
        self.device = device
        self.dtype = dtype
        self.sample_rate = model.sample_rate
        self.voices: Mapping[str, str] = shared_out(model.speakers)

    def prepare(self, text: str) -> Script:
        """The text in sentences. Raises InvalidRequest naming the characters that the model does not know."""
        plain = without_control(text)
        unknown = sorted({char for char in plain if self._written(char) is None})
        if unknown:
            listed = ", ".join(f"{char!r} (U+{ord(char):04X})" for char in unknown[:8])
            raise InvalidRequest(
                f"This voice cannot read {listed}. Write numbers and signs in words of its language.",
                "input",
                "invalid_value",
            )
        written = (
            " ".join("".join(self._written(char) or "" for char in part).split()) for part in split(plain, _MOST)
        )
        sentences = tuple(part for part in written if not _PAUSES.issuperset(part))
        return Script(sentences, sum(map(len, sentences)) / _CHARACTERS_PER_SECOND)

    def speak(self, sentences: Sequence[Sentence]) -> Sequence[Waveform | Exception]:
        """One waveform a sentence; its neighbours in the batch change nothing beyond rounding."""
        answers: dict[int, Waveform] = {}
        for voice in dict.fromkeys(sentence.voice for sentence in sentences):
            places = [place for place, sentence in enumerate(sentences) if sentence.voice == voice]
            waveforms = self._model.waveforms([sentences[place].text for place in places], voice)
            answers |= dict(zip(places, waveforms, strict=True))
        return [_at_speed(answers[place], self.sample_rate, it.speed) for place, it in enumerate(sentences)]

    def _written(self, char: str) -> str | None:
        """As the model knows it; a space for punctuation that it does not, None for anything else."""
        known = self._model.vocabulary
        if char in known:
            return char
        if char.lower() in known:
            return char.lower()
        return " " if char in _PAUSES else None


def _at_speed(waveform: Waveform, sample_rate: int, speed: float) -> Waveform:
    return waveform if speed == 1 else change_tempo(waveform, sample_rate, speed)


def load(spec: ModelSpec, folder: Path) -> TransformersEngine:
    """Safetensors only: other weight files can run code when they are opened. Raises ModelLoadError."""
    hide_progress_bars()
    try:
        kind = json.loads((folder / "config.json").read_text("utf-8")).get("model_type")
        device = pick_device(spec.device)
        # Half the precision is heard as noise, and these models are small.
        dtype = torch.float32 if spec.dtype == "auto" else pick_dtype(device, spec.dtype)
        model = _MODELS[kind](folder, torch.device(device), dtype) if kind in _MODELS else None
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise cannot_load(spec, error) from error
    if model is None:
        raise ModelLoadError(
            f"model {spec.id}: speech models of transformers are of {' or '.join(_MODELS)}, not {kind}"
        )
    engine = TransformersEngine(model, **placement(model.network))
    engine.speak([Sentence(min(model.vocabulary - _PAUSES), model.speakers[0])])
    log_placement(spec, model.network)
    return engine


class Vits:
    """VitsModel (Kim et al. 2021), which MMS uses for a thousand languages. Its speakers are numbered."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        """Raises ValueError for a model that reads phonemes."""
        from transformers import VitsModel, VitsTokenizer

        self._tokenizer: Any = VitsTokenizer.from_pretrained(folder)
        if self._tokenizer.phonemize:
            raise ValueError("it reads phonemes, which need espeak; take a model that reads letters, such as MMS")
        network: Any = VitsModel.from_pretrained(folder, dtype=dtype, use_safetensors=True)
        self.network = network.to(device).eval().requires_grad_(False)
        self.sample_rate = int(network.config.sampling_rate)
        several = network.config.num_speakers > 1
        self.speakers: Sequence[str] = (
            [f"speaker-{n}" for n in range(network.config.num_speakers)] if several else ["default"]
        )
        self.vocabulary = _readable(self._tokenizer.get_vocab())
        self._decode = network.decoder.forward
        network.decoder.forward = self._decode_each

    @torch.inference_mode()
    def waveforms(self, texts: Sequence[str], speaker: str) -> Sequence[Waveform]:
        inputs = self._tokenizer(list(texts), return_tensors="pt", padding=True).to(self.network.device)
        _, _, number = speaker.partition("-")
        with _Noise():
            output = self.network(**inputs, speaker_id=int(number) if number else None)
        lengths = output.sequence_lengths.tolist()
        return [_on_host(row[:length]) for row, length in zip(output.waveform, lengths, strict=True)]

    def _decode_each(self, spectrogram: torch.Tensor, global_conditioning: torch.Tensor | None = None) -> torch.Tensor:
        """The vocoder, one row at a time: beside a longer one, it would hear the padding as the end of a shorter."""
        waveforms = [self._decode(frames[None], global_conditioning)[0, 0] for frames in _unpadded(spectrogram)]
        return torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)[:, None]


class SpeechT5:
    """SpeechT5ForTextToSpeech (Ao et al. 2022) with its vocoder. Its speakers are vectors that lie beside it.

    `vocoder/` holds a SpeechT5HifiGan, `speaker_embeddings/` one NumPy file of [speaker_embedding_dim] a speaker.
    """

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        """Raises ValueError if the vocoder or the speakers are missing."""
        from transformers import SpeechT5ForTextToSpeech, SpeechT5HifiGan, SpeechT5Tokenizer

        if not (folder / _VOCODER / "config.json").is_file():
            raise ValueError(f"it has no folder {_VOCODER}; put a SpeechT5HifiGan with its config.json there")
        self._speakers = dict(_speaker_embeddings(folder, device, dtype))
        self.speakers: Sequence[str] = list(self._speakers)
        self._tokenizer: Any = SpeechT5Tokenizer.from_pretrained(folder)
        network: Any = SpeechT5ForTextToSpeech.from_pretrained(folder, dtype=dtype, use_safetensors=True)
        vocoder: Any = SpeechT5HifiGan.from_pretrained(folder / _VOCODER, dtype=dtype, use_safetensors=True)
        self.network = network.to(device).eval().requires_grad_(False)
        self._vocoder = vocoder.to(device).eval().requires_grad_(False)
        self.sample_rate = int(vocoder.config.sampling_rate)
        self.vocabulary = _readable(self._tokenizer.get_vocab())

    @torch.inference_mode()
    def waveforms(self, texts: Sequence[str], speaker: str) -> Sequence[Waveform]:
        inputs = self._tokenizer(list(texts), return_tensors="pt", padding=True).to(self.network.device)
        voices = self._speakers[speaker].expand(len(texts), -1)
        with _Noise():
            spectrograms, lengths = self.network.generate_speech(
                inputs.input_ids,
                voices,
                inputs.attention_mask,
                maxlenratio=_MOST_FRAMES,
                return_output_lengths=True,
            )
        # Whoever finds no end stops where he would stop alone, and not where the longest of the batch does.
        most = (inputs.attention_mask.sum(1) * _MOST_FRAMES).tolist()
        return [
            _on_host(self._vocoder(spectrogram[: min(length, limit)]))
            for spectrogram, length, limit in zip(spectrograms, lengths, most, strict=True)
        ]


_MODELS: Mapping[str, Callable[[Path, torch.device, torch.dtype], Model]] = {"vits": Vits, "speecht5": SpeechT5}


def _speaker_embeddings(folder: Path, device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    files = sorted((folder / _SPEAKER_FILES).glob("*.npy"))
    if not files:
        raise ValueError(f"it has no speakers; put x-vectors as NAME.npy into its folder {_SPEAKER_FILES}")
    for file in files:
        vector = np.load(file, allow_pickle=False).reshape(1, -1)
        yield file.stem, torch.from_numpy(vector).to(device, dtype)


def _readable(vocabulary: Mapping[str, int]) -> frozenset[str]:
    """The single characters; "▁" is how SentencePiece writes a space."""
    return frozenset(token for token in vocabulary if len(token) == 1 and token != "▁")


def _unpadded(spectrograms: torch.Tensor) -> Iterator[torch.Tensor]:
    """Each row, [channels, frames], without the frames of nothing but zeros at its end, but one frame at least."""
    for frames in spectrograms:
        used = frames.abs().amax(0).nonzero()
        yield frames[:, : int(used[-1]) + 1 if len(used) else 1]


def _on_host(samples: torch.Tensor) -> Waveform:
    return samples.float().cpu().numpy()


class _Noise(TorchFunctionMode):
    """Gives models that ask for chance the same numbers every time, whatever is computed beside a row.

    Random tensors are [rows, channels, time]: all rows get the same, and the numbers of a time step depend neither on
    how many steps there are nor on how many there were in the tensor before. Masks of dropout are shared by all rows.
    """

    _STEPS = 64

    def __init__(self) -> None:
        super().__init__()
        self._calls = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func is torch.randn:
            return self._normal(*args)
        if func is torch.randn_like:
            return self._normal(*args[0].shape).to(args[0])
        if func is torch.bernoulli:
            drawn = torch.rand(args[0].shape, generator=self._generator()) < options["p"]
            return drawn.to(args[0])
        return func(*args, **options)

    def _generator(self) -> torch.Generator:
        self._calls += 1
        return torch.Generator().manual_seed(self._calls)

    def _normal(self, rows: int, channels: int, steps: int) -> torch.Tensor:
        generator = self._generator()
        blocks = [torch.randn(channels, self._STEPS, generator=generator) for _ in range(0, steps, self._STEPS)]
        return torch.cat(blocks, 1)[None, :, :steps].expand(rows, -1, -1)
