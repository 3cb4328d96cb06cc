"""Tiny models that write texts, of random weights, saved the way real ones are."""

import json
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BertConfig,
    GenerationConfig,
    MoonshineConfig,
    MoonshineForConditionalGeneration,
    PreTrainedTokenizerFast,
    Speech2TextConfig,
    Speech2TextFeatureExtractor,
    Speech2TextForConditionalGeneration,
    Speech2TextTokenizer,
    SpeechEncoderDecoderConfig,
    SpeechEncoderDecoderModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
)

_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
MOST_TOKENS = 24
END = 2


def save_moonshine(folder: Path) -> Path:
    """Of bytes; its encoder normalizes over the whole window."""
    _save_bytes(folder)
    Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True).save_pretrained(folder)  # type: ignore[no-untyped-call]
    torch.manual_seed(0)
    config = MoonshineConfig(
        vocab_size=len(_SPECIAL) + 256,
        hidden_size=16,
        intermediate_size=32,
        encoder_num_hidden_layers=1,
        decoder_num_hidden_layers=1,
        encoder_num_attention_heads=2,
        decoder_num_attention_heads=2,
        max_position_embeddings=MOST_TOKENS,
        initializer_range=0.5,
    )
    return _save_model(MoonshineForConditionalGeneration(config), folder, 2.5)


def save_speech2text(folder: Path) -> Path:
    """Of pieces of words; the most probable text of two beams."""
    pieces = _save_pieces(folder)
    Speech2TextFeatureExtractor(feature_size=16, num_mel_bins=16).save_pretrained(folder)  # type: ignore[no-untyped-call]
    torch.manual_seed(3)
    config = Speech2TextConfig(
        vocab_size=pieces,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_target_positions=MOST_TOKENS,
        input_feat_per_channel=16,
        conv_channels=16,
        init_std=0.3,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
    )
    return _save_model(Speech2TextForConditionalGeneration(config), folder, 0.8, num_beams=2)


def save_encoder_decoder(folder: Path) -> Path:
    """Wav2Vec2 and BERT."""
    _save_bytes(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)  # type: ignore[no-untyped-call]
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "initializer_range": 0.5,
    }
    convolutions: dict[str, Any] = {"num_feat_extract_layers": 2}
    encoder = Wav2Vec2Config(
        conv_dim=(16, 16),
        conv_kernel=(25, 16),
        conv_stride=(20, 16),
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        **convolutions,
        **sizes,
    )
    decoder = BertConfig(vocab_size=len(_SPECIAL) + 256, max_position_embeddings=MOST_TOKENS, **sizes)
    config = SpeechEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    return _save_model(SpeechEncoderDecoderModel(config), folder, 1.5)


def _save_model(model: Any, folder: Path, more_ends: float, **generation: Any) -> Path:
    """more_ends: added to the logit of the end, so that some texts end before they are cut off."""
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        decoder_start_token_id=0, eos_token_id=END, sequence_bias=[[[END], more_ends]], **generation
    )
    model.save_pretrained(folder)
    return folder


def _save_bytes(folder: Path) -> None:
    symbols = [*_SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    names = ("bos_token", "pad_token", "eos_token", "unk_token")
    fast: Any = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **dict(zip(names, _SPECIAL, strict=True)))  # type: ignore[no-untyped-call]
    fast.save_pretrained(folder)


def _save_pieces(folder: Path) -> int:
    """How many tokens there are."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = iter(["the cat sat on a mat", "a dog and the cat", "no more of that"])
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=texts,
        model_prefix=str(folder / "pieces"),
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "pieces.model"))
    pieces = [model.id_to_piece(i) for i in range(model.get_piece_size())]
    symbols = [*_SPECIAL, *(piece for piece in pieces if piece not in _SPECIAL)]
    (folder / "vocab.json").write_text(json.dumps({symbol: i for i, symbol in enumerate(symbols)}))
    Speech2TextTokenizer(str(folder / "vocab.json"), str(folder / "pieces.model")).save_pretrained(folder)
    return len(symbols)
