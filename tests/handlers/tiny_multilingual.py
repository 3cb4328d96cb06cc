"""A tiny multilingual Whisper for CTranslate2, whose weights are set so that one knows what it must hear.

Each of four languages has a tone, and the louder tone is the more probable language. The text is two words: the
language and the task that stand in the prompt. The first is said when the first of `WORD_TONES` sounds, the other with
the second, and it ends with the third.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from ctranslate2.converters import TransformersConverter
from tokenizers import pre_tokenizers
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from handlers.audio.waveform import Waveform
from handlers.transcription.engine import SAMPLE_RATE

SPOKEN = ("en", "de", "fr", "ja")
TASKS = ("transcribe", "translate")
KNOWN = tuple(code for code in LANGUAGES if code != "yue")
"""Of the models before large-v3: 99."""

_CONTROL = [
    "<|endoftext|>",
    "<|startoftranscript|>",
    *(f"<|{code}|>" for code in KNOWN),
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
]
_TIMESTAMPS = 1501
_END = 150  # the text ends after 3 seconds

_MELS = 16
_WIDTH = 64
_TONES = {**{code: 2 + i for i, code in enumerate(SPOKEN)}, "first": 10, "second": 12, "end": 14}
WORD_TONES = ("first", "second", "end")

# Where a vector of the decoder says what: the last token's kind, its meaning, what came before, and what is heard.
_KINDS = ("start", "task", "begin", "language word", "task word", "end")
_MEANINGS = (*SPOKEN, *TASKS)
_MEANING, _BEFORE, _HEARD = 8, 16, 32


def tones(seconds: float = 3.0, **loudness: float) -> Waveform:
    """Loudness: of the languages' tones."""
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    sound = sum(volume * np.sin(2 * np.pi * _frequency(name) * time) for name, volume in loudness.items())
    return np.asarray(sound, np.float32)


def _frequency(name: str) -> float:
    filters = WhisperFeatureExtractor(feature_size=_MELS).mel_filters  # type: ignore[no-untyped-call]
    return float(filters[:, _TONES[name]].argmax()) * SAMPLE_RATE / 400


def save_multilingual(folder: Path) -> Path:
    saved, converted = folder / "saved", folder / "converted"
    vocabulary = _save_tokenizer(saved)
    WhisperFeatureExtractor(feature_size=_MELS).save_pretrained(saved)  # type: ignore[no-untyped-call]
    model = _model(vocabulary)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        lang_to_id={f"<|{code}|>": vocabulary[f"<|{code}|>"] for code in KNOWN},
        alignment_heads=[[0, 1]],
        suppress_tokens=[vocabulary["<|nospeech|>"]],
        begin_suppress_tokens=[vocabulary["<|endoftext|>"]],
    )
    with torch.no_grad():
        _set_weights(model, vocabulary)
    model.save_pretrained(saved)
    files = ["tokenizer.json", "preprocessor_config.json"]
    TransformersConverter(str(saved), copy_files=files).convert(str(converted))
    return converted


def _save_tokenizer(folder: Path) -> dict[str, int]:
    """Of bytes and the words that the model says. By the empty one, CTranslate2 knows a multilingual vocabulary."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    texts = [*symbols, *(f"Ġ{meaning}" for meaning in _MEANINGS), ""]
    times = [f"<|{step / 50:.2f}|>" for step in range(_TIMESTAMPS)]
    vocabulary = {symbol: i for i, symbol in enumerate([*texts, *_CONTROL, *times])}
    known = {symbol: vocabulary[symbol] for symbol in [*texts, _CONTROL[0]]}
    WhisperTokenizer(vocab=known, merges=[], additional_special_tokens=_CONTROL[1:]).save_pretrained(folder)
    return vocabulary


def _model(vocabulary: dict[str, int]) -> WhisperForConditionalGeneration:
    end = vocabulary["<|endoftext|>"]
    config = WhisperConfig(
        vocab_size=len(vocabulary),
        num_mel_bins=_MELS,
        d_model=_WIDTH,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        tie_word_embeddings=False,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=end + 1,
    )
    return WhisperForConditionalGeneration(config)


def _set_weights(model: Any, vocabulary: dict[str, int]) -> None:
    for name, parameter in model.named_parameters():
        parameter.fill_(1.0 if "layer_norm.weight" in name else 0.0)
    _hear(model.model.encoder)
    _remember(model.model.decoder.layers[0])
    _listen(model.model.decoder.layers[0].encoder_attn)
    _write(model.model.decoder.embed_tokens.weight, model.proj_out.weight, vocabulary)


def _hear(encoder: Any) -> None:
    """What comes out is the spectrum that goes in."""
    for mel in range(_MELS):
        encoder.conv1.weight[mel, mel, 1] = 1.0
        encoder.conv2.weight[mel, mel, 1] = 1.0
        encoder.conv1.bias[mel] = 1.0


def _remember(layer: Any) -> None:
    """Attention is even over all earlier tokens, and sums up their meanings."""
    for i in range(len(_MEANINGS)):
        layer.self_attn.v_proj.weight[i, _MEANING + i] = 1.0
        layer.self_attn.out_proj.weight[_BEFORE + i, i] = 0.3


def _listen(attention: Any) -> None:
    """One head is even over the window, and takes the spectrum; the other one waits for the tone of the next word."""
    for mel in range(_MELS):
        attention.v_proj.weight[mel, mel] = 1.0
        attention.out_proj.weight[_HEARD + mel, mel] = 1.0
    half = _WIDTH // 2
    for i, (kind, tone) in enumerate(zip(_KINDS[2:5], WORD_TONES, strict=True)):
        attention.q_proj.weight[half + i, _KINDS.index(kind)] = 2.0
        attention.k_proj.weight[half + i, _TONES[tone]] = 2.0


def _write(embeddings: torch.Tensor, outputs: torch.Tensor, vocabulary: dict[str, int]) -> None:
    """embeddings: what a token is; outputs: after what it comes."""
    first = vocabulary["<|0.00|>"]
    is_a = {"<|startoftranscript|>": "start", "<|0.00|>": "begin", "<|notimestamps|>": "begin"}
    is_a |= {f"<|{task}|>": "task" for task in TASKS}
    is_a |= {f"Ġ{code}": "language word" for code in SPOKEN} | {f"Ġ{task}": "task word" for task in TASKS}
    for token, kind in is_a.items():
        embeddings[vocabulary[token], _KINDS.index(kind)] = 1.0
    embeddings[first + _END, _KINDS.index("end")] = 1.0
    comes_after = {"<|0.00|>": "task", "<|endoftext|>": "end"}
    comes_after |= {f"<|{code}|>": "start" for code in SPOKEN}
    comes_after |= {f"Ġ{code}": "begin" for code in SPOKEN} | {f"Ġ{task}": "language word" for task in TASKS}
    for token, kind in comes_after.items():
        outputs[vocabulary[token], _KINDS.index(kind)] = 40.0
    outputs[first + _END, _KINDS.index("task word")] = 40.0
    for i, meaning in enumerate(_MEANINGS):
        embeddings[vocabulary[f"<|{meaning}|>"], _MEANING + i] = 1.0
        outputs[vocabulary[f"Ġ{meaning}"], _BEFORE + i] = 40.0
    for code in SPOKEN:
        outputs[vocabulary[f"<|{code}|>"], _HEARD + _TONES[code]] = 2.0
