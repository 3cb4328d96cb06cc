"""A tiny Whisper with random weights, saved the way real ones are."""

from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

LANGUAGES = ("en", "de", "ja")
_CONTROL = [
    "<|endoftext|>",
    "<|startoftranscript|>",
    *(f"<|{language}|>" for language in LANGUAGES),
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
    *(f"<|{step / 50:.2f}|>" for step in range(1501)),
]
FIRST_TIMESTAMP = 256 + _CONTROL.index("<|0.00|>")
_LETTERS = " abcdefghijklmnop.,"


def save_whisper(folder: Path, *, multilingual: bool = True) -> Path:
    """Two layers each; its tokens are bytes, its texts of a few letters. alignment heads: all of the last layer."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: i for i, symbol in enumerate([*symbols, *_CONTROL])}
    WhisperTokenizer(vocab=vocabulary, merges=[], additional_special_tokens=_CONTROL[1:11]).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=16).save_pretrained(folder)  # type: ignore[no-untyped-call]
    torch.manual_seed(1)
    end = vocabulary["<|endoftext|>"]
    config = WhisperConfig(
        vocab_size=len(vocabulary),
        num_mel_bins=16,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_target_positions=48,
        init_std=0.5,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=end + 1,
    )
    model = WhisperForConditionalGeneration(config)
    # A letter is never the first byte of a longer character: the texts are readable, and have words.
    readable = [i for symbol, i in vocabulary.items() if i < end and symbol.replace("Ġ", " ") not in _LETTERS]
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        decoder_start_token_id=end + 1,
        eos_token_id=end,
        bos_token_id=end,
        pad_token_id=end,
        is_multilingual=multilingual,
        lang_to_id={f"<|{language}|>": vocabulary[f"<|{language}|>"] for language in LANGUAGES},
        task_to_id={task: vocabulary[f"<|{task}|>"] for task in ("translate", "transcribe")},
        no_timestamps_token_id=vocabulary["<|notimestamps|>"],
        max_initial_timestamp_index=50,
        alignment_heads=[[1, 0], [1, 1]],
        suppress_tokens=[*readable, *range(end + 1, vocabulary["<|notimestamps|>"])],
        begin_suppress_tokens=[end],
    )
    model.save_pretrained(folder)
    return folder
