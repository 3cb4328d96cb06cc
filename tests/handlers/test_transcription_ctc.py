"""CTC models of transformers in batches of any requests; on the processor, and the same on a GPU with `-m gpu`."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    HubertConfig,
    HubertForCTC,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
)
from transformers.utils.logging import enable_progress_bar, is_progress_bar_enabled

from handlers.spec import ModelSpec, Task
from handlers.transcription.engine import SAMPLE_RATE, Engine, Heard, Options, Window
from handlers.transcription.transformers import load

EVERYTHING = Options(word_timestamps=True, logprobs=True)
LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFG"]
SIZES: dict[str, Any] = {
    "vocab_size": len(LETTERS),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (16, 16),
    "conv_kernel": (25, 16),
    "conv_stride": (20, 16),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "initializer_range": 0.5,
    "pad_token_id": 0,
}


def save(folder: Path, *, masked: bool) -> Path:
    """masked: as the large models, which know what is padding; the others do not."""
    (folder / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(LETTERS)}))
    Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)  # type: ignore[no-untyped-call]
    Wav2Vec2FeatureExtractor(return_attention_mask=masked).save_pretrained(folder)  # type: ignore[no-untyped-call]
    torch.manual_seed(0)
    model: HubertForCTC | Wav2Vec2ForCTC
    if masked:
        model = Wav2Vec2ForCTC(Wav2Vec2Config(feat_extract_norm="layer", do_stable_layer_norm=True, **SIZES))
    else:
        model = HubertForCTC(HubertConfig(feat_extract_norm="group", **SIZES))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["masked", "unmasked"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("ctc"), masked=request.param == "masked")


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def engine(request: pytest.FixtureRequest, folder: Path) -> Engine:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device: it needs the driver and a CUDA build of torch")
    spec = ModelSpec(id="tiny", task=Task.TRANSCRIPTION, source="dir:tiny", device=request.param, dtype="float32")
    return load(spec, folder)


def sound(seconds: float, seed: int, options: Options = EVERYTHING) -> Window:
    return Window(np.random.default_rng(seed).standard_normal(int(seconds * SAMPLE_RATE), np.float32), options)


WINDOWS = [sound(seconds, seed) for seed, seconds in enumerate([3.0, 1.0, 0.05, 3.0, 7.3])]


def heard(engine: Engine, *windows: Window) -> list[Heard]:
    answers = engine.transcribe(windows)
    assert all(isinstance(answer, Heard) for answer in answers)
    return [answer for answer in answers if isinstance(answer, Heard)]


def assert_alike(one: Heard, other: Heard) -> None:
    assert (one.audio_tokens, one.output_tokens) == (other.audio_tokens, other.output_tokens)
    assert [(s.text, s.start, s.end, s.tokens) for s in one.segments] == [
        (s.text, s.start, s.end, s.tokens) for s in other.segments
    ]
    for a, b in zip(one.segments, other.segments, strict=True):
        assert [t.logprob for t in a.logprobs] == pytest.approx([t.logprob for t in b.logprobs], abs=1e-3)


def test_loading_draws_no_progress_bars_between_the_lines_of_the_log(folder: Path) -> None:
    enable_progress_bar()  # type: ignore[no-untyped-call]
    load(ModelSpec("tiny", Task.TRANSCRIPTION, "dir:tiny", device="cpu", dtype="float32"), folder)
    assert not is_progress_bar_enabled()


def test_a_window_is_heard_among_others_as_it_is_alone_in_any_order(engine: Engine) -> None:
    alone = [heard(engine, window)[0] for window in WINDOWS]
    assert len([one for one in alone if one.segments]) >= 3
    order = random.Random(0).sample(range(len(WINDOWS)), len(WINDOWS))
    for one, other in zip(heard(engine, *WINDOWS), alone, strict=True):
        assert_alike(one, other)
    for i, one in zip(order, heard(engine, *(WINDOWS[i] for i in order)), strict=True):
        assert_alike(one, alone[i])


def test_a_window_without_numbers_fails_alone(engine: Engine) -> None:
    broken = Window(np.full(SAMPLE_RATE * 3, np.nan, np.float32))
    one, error = engine.transcribe([WINDOWS[0], broken])
    assert isinstance(error, ValueError)
    assert isinstance(one, Heard)
    assert_alike(one, heard(engine, WINDOWS[0])[0])


@pytest.mark.parametrize("samples", [0, 1, 24])
def test_a_window_too_short_for_a_letter_has_none(engine: Engine, samples: int) -> None:
    assert heard(engine, Window(np.zeros(samples, np.float32)))[0].segments == ()


def test_words_follow_one_another_inside_their_segment_and_make_up_its_text(engine: Engine) -> None:
    for window, one in zip(WINDOWS, heard(engine, *WINDOWS), strict=True):
        for segment in one.segments:
            times = [time for word in segment.words for time in (word.start, word.end)]
            assert times == sorted(times)
            assert 0 <= segment.start == times[0] <= times[-1] == segment.end <= window.seconds
            assert "".join(word.word for word in segment.words) == segment.text
            assert b"".join(token.bytes for token in segment.logprobs).decode() == segment.text
            assert all(0 <= word.probability <= 1 for word in segment.words)


def test_the_text_is_that_of_transformers_own_tokenizer(engine: Engine, folder: Path) -> None:
    tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(folder)
    inputs = Wav2Vec2FeatureExtractor.from_pretrained(folder)(
        WINDOWS[0].samples, sampling_rate=SAMPLE_RATE, return_tensors="pt"
    )
    kind = Wav2Vec2ForCTC if inputs.get("attention_mask") is not None else HubertForCTC
    with torch.inference_mode():
        logits = kind.from_pretrained(folder)(**inputs).logits
    (segment,) = heard(engine, WINDOWS[0])[0].segments
    assert segment.text.split() == tokenizer.decode(logits[0].argmax(-1)).split()


def test_only_what_is_asked_for_is_there(engine: Engine) -> None:
    (segment,) = heard(engine, sound(3.0, 0, Options()))[0].segments
    assert (segment.words, segment.logprobs) == ((), ())


def test_it_takes_no_prompt_and_tells_no_language(engine: Engine) -> None:
    facts = engine.facts
    assert (facts.languages, facts.translates, facts.max_prompt_tokens, facts.temperatures) == ((), False, 0, False)
    assert engine.count_prompt("earlier text", ("name",)) == 3
    assert engine.count_prompt(None, ()) == 0
