"""Tiny voices with random weights, saved the way real ones are."""

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from transformers import (
    SpeechT5Config,
    SpeechT5ForTextToSpeech,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
    SpeechT5Tokenizer,
    VitsConfig,
    VitsModel,
    VitsTokenizer,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz' "


def save_vits(folder: Path, *, speakers: int = 1, phonemize: bool = False) -> Path:
    """Of letters, as MMS has it; 16 kHz."""
    folder.mkdir(exist_ok=True)
    (folder / "letters.json").write_text(
        json.dumps({letter: i for i, letter in enumerate(["<pad>", *LETTERS, "<unk>"])})
    )
    VitsTokenizer(str(folder / "letters.json"), phonemize=phonemize).save_pretrained(folder)
    torch.manual_seed(0)
    config = VitsConfig(
        vocab_size=len(LETTERS) + 2,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        ffn_dim=16,
        flow_size=16,
        spectrogram_bins=9,
        num_speakers=speakers,
        speaker_embedding_size=8 if speakers > 1 else 0,
        duration_predictor_flow_bins=4,
        duration_predictor_filter_channels=16,
        prior_encoder_num_flows=2,
        posterior_encoder_num_wavenet_layers=1,
        prior_encoder_num_wavenet_layers=2,
        wavenet_kernel_size=3,
        depth_separable_num_layers=1,
        duration_predictor_num_flows=2,
        upsample_initial_channel=16,
        upsample_rates=[4, 4],
        upsample_kernel_sizes=[8, 8],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
    )
    VitsModel(config).save_pretrained(folder)
    return folder


def save_speecht5(folder: Path, *, speakers: tuple[str, ...] = ("ann", "bob")) -> Path:
    """With a vocoder and x-vectors of random numbers; 16 kHz."""
    folder.mkdir(exist_ok=True)
    model = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([LETTERS.upper(), LETTERS, "some words, and a few more. Yes!"] * 4),
        model_writer=model,
        model_type="char",
        vocab_size=64,
        hard_vocab_limit=False,
        bos_id=0,
        pad_id=1,
        eos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    (folder / "spm_char.model").write_bytes(model.getvalue())
    tokenizer = SpeechT5Tokenizer(str(folder / "spm_char.model"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = SpeechT5Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_mel_bins=8,
        speech_decoder_prenet_units=16,
        speech_decoder_postnet_units=16,
        speech_decoder_postnet_layers=2,
        speaker_embedding_dim=8,
        max_text_positions=600,
    )
    network = SpeechT5ForTextToSpeech(config)
    with torch.no_grad():
        # So that it stops, but not at once.
        network.speech_decoder_postnet.prob_out.weight.mul_(30.0)
        network.speech_decoder_postnet.prob_out.bias.fill_(-8.0)
    network.save_pretrained(folder)
    vocoder = SpeechT5HifiGanConfig(
        model_in_dim=8,
        upsample_initial_channel=8,
        upsample_rates=[4, 4],
        upsample_kernel_sizes=[8, 8],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
    )
    SpeechT5HifiGan(vocoder).save_pretrained(folder / "vocoder")
    (folder / "speaker_embeddings").mkdir(exist_ok=True)
    for i, name in enumerate(speakers):
        np.save(
            folder / "speaker_embeddings" / f"{name}.npy", np.random.default_rng(i).normal(size=8).astype(np.float32)
        )
    return folder
