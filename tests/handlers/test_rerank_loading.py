"""Which models are refused as rerankers, and what is said of them."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    PreTrainedModel,
)

from handlers.errors import ModelLoadError
from handlers.rerank.engine import load
from handlers.spec import ModelSpec, Task
from tests.handlers.tiny import (
    CROSS_ENCODER_SIZES,
    save_chat_model,
    save_cross_encoder,
    save_embedding_model,
    save_word_tokenizer,
)


def spec(**options: Any) -> ModelSpec:
    return ModelSpec("tiny", Task.RERANK, "dir:x", dtype="float32", **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_cross_encoder(tmp_path_factory.mktemp("reranker"))


def test_a_model_of_another_kind_is_refused_at_load(tmp_path: Path) -> None:
    save_embedding_model(tmp_path)
    with pytest.raises(ModelLoadError, match="^model tiny: .* its architecture is BertModel"):
        load(spec(), tmp_path)


@pytest.mark.parametrize("model", [BertForSequenceClassification, ElectraForSequenceClassification])
def test_a_model_with_several_classes_is_refused_at_load(tmp_path: Path, model: type[PreTrainedModel]) -> None:
    config = {BertForSequenceClassification: BertConfig, ElectraForSequenceClassification: ElectraConfig}[model]
    save_cross_encoder(tmp_path, model(config(**{**CROSS_ENCODER_SIZES, "num_labels": 3})))
    with pytest.raises(ModelLoadError, match="^model tiny: .* it tells 3 classes apart; a reranker has one"):
        load(spec(), tmp_path)


@pytest.mark.parametrize(
    ("pair", "reason"),
    [("[CLS] $A $B:1 [SEP]:1", "puts nothing between"), ("[CLS]:1 $A [SEP] $B:1 [SEP]:1", "gives other types")],
)
def test_a_tokenizer_that_is_no_cross_encoders_is_refused_at_load(
    folder: Path, pair: str, reason: str, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    save_word_tokenizer(copy, pair=pair)
    with pytest.raises(ModelLoadError, match=reason):
        load(spec(), copy)


def test_a_language_model_of_another_kind_is_refused_at_load(tmp_path: Path) -> None:
    save_chat_model(tmp_path)
    with pytest.raises(ModelLoadError, match=r"has no token <\|im_start\|>, <\|im_end\|>, yes, no"):
        load(spec(), tmp_path)


def test_a_context_above_the_models_own_is_refused_at_load(folder: Path) -> None:
    with pytest.raises(ModelLoadError, match="max_model_len 65 is above the model's own 64"):
        load(spec(max_model_len=65), folder)


def test_a_missing_tensor_is_named(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    file = copy / "model.safetensors"
    save_file({name: value.clone() for name, value in load_file(file).items() if "pooler" not in name}, file)
    with pytest.raises(ModelLoadError, match=r"has no pooler\.dense\.weight"):
        load(spec(), copy)
