from collections.abc import Mapping
from typing import Any

import anyio
import pytest

from handlers.errors import InvalidRequest, ModelLoadError, ModelLoading, ModelNotFound
from handlers.registry import Registry
from handlers.spec import ModelSpec, Task
from handlers.stats import ModelStats
from tests.batching.fakes import IDLE

pytestmark = pytest.mark.anyio


class Recorder:
    """Writes down what is asked of it; loading waits for `may_load` and then raises `failure`, if there is one."""

    def __init__(self, id: str, task: Task, *aliases: str, failure: Exception | None = None) -> None:
        self.spec = ModelSpec(id, task, "dir:/none", aliases=aliases)
        self.failure = failure
        self.calls: list[str] = []
        self.may_load = anyio.Event()
        self.running = anyio.Event()

    async def load(self) -> None:
        self.calls.append("load")
        await self.may_load.wait()
        if self.failure:
            raise self.failure

    async def run(self) -> None:
        self.calls.append("run")
        self.running.set()
        await anyio.sleep_forever()

    async def drain(self) -> None:
        self.calls.append("drain")

    def describe(self) -> Mapping[str, Any]:
        return {"capabilities": [self.spec.task]}

    def stats(self) -> ModelStats:
        return ModelStats(IDLE)


def chat(*aliases: str, **options: Any) -> Recorder:
    return Recorder("chat", Task.CHAT, *aliases, **options)


async def test_a_model_answers_to_its_id_and_its_aliases() -> None:
    registry = Registry([chat("gpt-4o", "gpt-4o-mini"), Recorder("embed", Task.EMBEDDINGS)])
    assert {name: registry.find(name).spec.id for name in ("chat", "gpt-4o", "gpt-4o-mini", "embed")} == {
        "chat": "chat",
        "gpt-4o": "chat",
        "gpt-4o-mini": "chat",
        "embed": "embed",
    }
    assert "gpt-4o" in registry and "gpt-5" not in registry
    with pytest.raises(ModelNotFound):
        registry.find("gpt-5")


async def test_a_model_for_another_task_is_the_callers_mistake_and_the_right_one_is_named() -> None:
    registry = Registry([chat(), Recorder("embed", Task.EMBEDDINGS)])
    with pytest.raises(
        InvalidRequest, match="`chat` is for chat, not for embeddings. Served here .*: embed."
    ) as refused:
        registry.resolve("chat", Task.EMBEDDINGS)
    assert refused.value.param == "model"
    with pytest.raises(InvalidRequest, match="No model for speech is served here."):
        registry.resolve("chat", Task.SPEECH)


async def test_models_are_loaded_in_turn_and_served_as_soon_as_they_are_warm() -> None:
    first, second = chat(), Recorder("embed", Task.EMBEDDINGS)
    registry = Registry([first, second])
    ready = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(registry.serve, ready.set)
        await anyio.wait_all_tasks_blocked()
        assert (first.calls, second.calls) == (["load"], [])
        with pytest.raises(ModelLoading):
            registry.resolve("chat", Task.CHAT)
        first.may_load.set()
        await first.running.wait()
        assert id(registry.resolve("chat", Task.CHAT)) == id(first)
        assert not registry.ready and not ready.is_set()
        second.may_load.set()
        await ready.wait()
        assert registry.ready
        tasks.cancel_scope.cancel()


async def test_a_model_that_cannot_be_loaded_ends_the_serving() -> None:
    broken = chat(failure=ModelLoadError("model chat: no"))
    broken.may_load.set()
    with pytest.RaisesGroup(ModelLoadError):
        await Registry([broken]).serve(lambda: None)


async def test_only_models_that_run_are_drained() -> None:
    warm, cold = chat(), Recorder("embed", Task.EMBEDDINGS)
    registry = Registry([warm, cold])
    registry.models[0].ready = True
    await registry.drain()
    assert (warm.calls, cold.calls) == (["drain"], [])


async def test_a_model_is_not_asked_what_it_has_done_before_it_is_warm() -> None:
    (model,) = Registry([chat()]).models
    assert model.stats() is None
    model.ready = True
    assert model.stats() == ModelStats(IDLE)


async def test_stopping_ends_every_batch_loop() -> None:
    warm = chat()
    warm.may_load.set()
    registry = Registry([warm])
    with anyio.fail_after(5):
        await registry.serve(registry.stop)
