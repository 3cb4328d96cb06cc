"""The BERT family over packed tokens, against transformers' own models."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from handlers.embeddings.engine import Embedder, load
from handlers.embeddings.transformers_model import TransformersModel
from handlers.encoders.bert import Bert
from handlers.encoders.encoder import Encoder, TokenIds, passes
from handlers.errors import ModelLoadError
from handlers.sources import fetch
from handlers.spec import ModelSpec, Task
from handlers.starter import EMBEDDINGS
from tests.handlers.tiny import save_embedding_model

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
    "initializer_range": 0.5,
}
INPUTS = [[2, *range(4, 4 + n), 3] for n in (30, 12, 12, 12, 5, 1, 1, 0)]


def spec(dtype: str = "float32") -> ModelSpec:
    return ModelSpec("tiny", Task.EMBEDDINGS, "dir:x", dtype=dtype)


def save(folder: Path, model: PreTrainedModel) -> Path:
    """The model in the place of the tiny one, with that one's tokenizer."""
    save_embedding_model(folder)
    model.save_pretrained(folder)
    return folder


def hidden_states(encoder: Encoder, inputs: list[list[int]]) -> list[torch.Tensor]:
    with torch.inference_mode():
        return [text for run in encoder.encode(inputs) for text in run]


def assert_equal_to_transformers(folder: Path, encoder: Encoder) -> None:
    model = AutoModel.from_pretrained(folder)
    for ids, ours in zip(INPUTS, hidden_states(encoder, INPUTS), strict=True):
        with torch.inference_mode():
            theirs = model(torch.tensor([ids])).last_hidden_state[0]
        assert ours.shape == theirs.shape
        assert torch.cosine_similarity(ours, theirs, dim=-1).min() >= 0.99999
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_bert_equals_transformers(tmp_path: Path, activation: str) -> None:
    torch.manual_seed(0)
    save(tmp_path, BertModel(BertConfig(**SIZES, hidden_act=activation)))
    encoder = load(spec(), tmp_path).encoder
    assert isinstance(encoder, Bert)
    assert encoder.positions == 40
    assert_equal_to_transformers(tmp_path, encoder)


@pytest.mark.parametrize(
    ("kind", "config"), [(RobertaModel, RobertaConfig), (XLMRobertaModel, XLMRobertaConfig)], ids=["roberta", "xlm"]
)
def test_roberta_equals_transformers(
    tmp_path: Path, kind: type[PreTrainedModel], config: type[RobertaConfig | XLMRobertaConfig]
) -> None:
    torch.manual_seed(0)
    save(tmp_path, kind(config(**SIZES, type_vocab_size=1)))
    encoder = load(spec(), tmp_path).encoder
    assert isinstance(encoder, Bert)
    assert encoder.positions == 40 - 2
    assert_equal_to_transformers(tmp_path, encoder)


def test_another_architecture_runs_through_transformers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 50,
        "dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 48,
        "max_position_embeddings": 40,
    }
    save(tmp_path, DistilBertModel(DistilBertConfig(**sizes, initializer_range=0.5)))
    encoder = load(spec(), tmp_path).encoder
    assert isinstance(encoder, TransformersModel)
    assert_equal_to_transformers(tmp_path, encoder)


def test_names_of_old_checkpoints_are_understood(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save(tmp_path, BertModel(BertConfig(**SIZES)))
    (expected,) = hidden_states(load(spec(), tmp_path).encoder, INPUTS[:1])
    file = tmp_path / "model.safetensors"
    old = {
        f"bert.{name}".replace("Norm.weight", "Norm.gamma"): value.clone() for name, value in load_file(file).items()
    }
    save_file(old, file)
    torch.testing.assert_close(hidden_states(load(spec(), tmp_path).encoder, INPUTS[:1]), [expected])


@pytest.mark.parametrize("content", [b"", b"no tensors here"])
def test_a_broken_weight_file_is_one_clear_line(tmp_path: Path, content: bytes) -> None:
    save_embedding_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelLoadError, match="^model tiny: cannot be loaded from dir:x: .+$"):
        load(spec(), tmp_path)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    file = save_embedding_model(tmp_path) / "model.safetensors"
    save_file({name: value.clone() for name, value in load_file(file).items() if "layer.1.output" not in name}, file)
    with pytest.raises(ModelLoadError, match=r"has no encoder\.layer\.1\.output\.dense\.weight"):
        load(spec(), tmp_path)


@pytest.mark.parametrize("content", [None, "{"])
def test_a_tokenizer_that_cannot_be_read_is_named(tmp_path: Path, content: str | None) -> None:
    file = save_embedding_model(tmp_path) / "tokenizer.json"
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json"):
        load(spec(), tmp_path)


def test_passes_hold_a_budget_and_an_input_above_it_passes_alone() -> None:
    inputs: list[TokenIds] = [[0] * n for n in (9, 4, 4, 2, 1, 1)]
    assert [list(map(len, batch)) for batch in passes(inputs, 8)] == [[9], [4, 4], [2, 1, 1]]


def test_loading_does_not_import_transformers(tmp_path: Path) -> None:
    save_embedding_model(tmp_path)
    code = (
        "import sys; from pathlib import Path; from handlers.embeddings.engine import load;"
        "from handlers.spec import ModelSpec, Task;"
        "load(ModelSpec('tiny', Task.EMBEDDINGS, 'dir:x'), Path(sys.argv[1]));"
        "print(sorted({'transformers', 'torch._dynamo'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.models
def test_the_starter_model_equals_transformers(models_dir: Path) -> None:
    folder = fetch(EMBEDDINGS.source, models_dir, offline=True)
    loaded = load(spec(), folder)
    texts = ["Hello", "naïve café 北京, ÉCOLE!", "The quick brown fox. " * 12, "one two", "word " * 200]
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    ids = [encoding.ids for encoding in loaded.tokenizer.encode_batch_fast(texts)]
    assert ids == [tokenizer(text)["input_ids"] for text in texts]
    for text_ids, ours in zip(ids, Embedder(loaded).embed(ids), strict=True):
        with torch.inference_mode():
            theirs = model(torch.tensor([text_ids])).last_hidden_state[0].mean(dim=0)
        assert isinstance(ours, np.ndarray)
        assert torch.cosine_similarity(torch.from_numpy(ours), theirs, dim=0) >= 0.99999
