"""Names and aliases to handlers, and which of them are warm."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, overload

import anyio

from batching.worker import Worker
from handlers.base import ChatHandler, EmbeddingsHandler, Handler, RerankHandler, SpeechHandler, TranscriptionHandler
from handlers.devices import release_memory
from handlers.errors import InvalidRequest, ModelLoading, ModelNotFound
from handlers.spec import ModelSpec, Task
from handlers.stats import ModelStats

logger = logging.getLogger(__name__)


class Model:
    """A handler and its state. `created`: unix seconds of registration, as `/v1/models` wants it."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.created = int(time.time())
        self.ready = False

    @property
    def spec(self) -> ModelSpec:
        return self.handler.spec

    def describe(self) -> Mapping[str, Any]:
        return self.handler.describe()

    def serves(self, task: Task) -> bool:
        """Whether it is for that, or says that it can do it besides."""
        return self.spec.task is task or task in self.describe()["capabilities"]

    @property
    def broken(self) -> str | None:
        """Why it answers nothing any more."""
        stats = self.stats()
        return stats.broken if stats else None

    @property
    def restarting(self) -> bool:
        """Whether its requests wait for a process that is started again."""
        stats = self.stats()
        return stats is not None and stats.restarting

    def stats(self) -> ModelStats | None:
        """None until it is warm."""
        return self.handler.stats() if self.ready else None

    def predicted_wait(self) -> float:
        """Seconds that a request would wait in the queue; 0 while nothing is known."""
        stats = self.stats()
        return 0.0 if stats is None else stats.batches.predicted_wait

    async def load(self) -> None:
        """Raises ModelLoadError or SourceError."""
        started = time.monotonic()
        await self.handler.load()
        await Worker(f"{self.spec.id} cleaning").run(release_memory)
        self.ready = True
        logger.info("%s is warm after %.1f s", self.spec.id, time.monotonic() - started)


class Registry:
    """Every model this process serves. Ids and aliases share one name space; the settings refuse duplicates."""

    def __init__(self, handlers: Sequence[Handler]) -> None:
        self.models: Sequence[Model] = [Model(handler) for handler in handlers]
        self._by_name = {name: model for model in self.models for name in (model.spec.id, *model.spec.aliases)}
        self._serving: anyio.CancelScope | None = None

    @property
    def ready(self) -> bool:
        return all(model.ready and not model.broken for model in self.models)

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def find(self, name: str) -> Model:
        """Raises ModelNotFound."""
        try:
            return self._by_name[name]
        except KeyError:
            raise ModelNotFound(name) from None

    @overload
    def resolve(self, name: str, task: Literal[Task.CHAT]) -> ChatHandler: ...
    @overload
    def resolve(self, name: str, task: Literal[Task.EMBEDDINGS]) -> EmbeddingsHandler: ...
    @overload
    def resolve(self, name: str, task: Literal[Task.TRANSCRIPTION]) -> TranscriptionHandler: ...
    @overload
    def resolve(self, name: str, task: Literal[Task.SPEECH]) -> SpeechHandler: ...
    @overload
    def resolve(self, name: str, task: Literal[Task.RERANK]) -> RerankHandler: ...
    def resolve(self, name: str, task: Task) -> Any:
        """The warm handler that serves `name` for `task`.

        Raises ModelNotFound, InvalidRequest when the model is for something else, ModelLoading while it warms up.
        """
        model = self.find(name)
        if not model.serves(task):
            raise InvalidRequest(
                f"The model `{name}` is for {model.spec.task}, not for {task}. {self._suggestion(task)}", "model"
            )
        if not model.ready:
            raise ModelLoading(name)
        return model.handler

    async def serve(self, on_ready: Callable[[], None]) -> None:
        """Load every model, each followed by its batch loop; ends by cancellation or `stop`.

        One after the other: side by side they fight over the same cores, and libraries that import lazily break.
        Raises ModelLoadError or SourceError when one cannot be had.
        """
        with anyio.CancelScope() as self._serving:
            async with anyio.create_task_group() as loops:
                for model in self.models:
                    await model.load()
                    loops.start_soon(model.handler.run, name=f"batches of {model.spec.id}")
                on_ready()

    def stop(self) -> None:
        """End every batch loop: who still waits for an answer is told ShuttingDown."""
        if self._serving is not None:
            self._serving.cancel()

    async def drain(self) -> None:
        """Refuse new work everywhere; return when all admitted work has its answer."""
        async with anyio.create_task_group() as draining:
            for model in filter(lambda model: model.ready, self.models):
                draining.start_soon(model.handler.drain)

    def _suggestion(self, task: Task) -> str:
        served = [model.spec.id for model in self.models if model.serves(task)]
        return f"Served here for {task}: {', '.join(served)}." if served else f"No model for {task} is served here."
