"""Chat: messages in, a stream of text out, over one batch that all callers share."""

import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batching.generation import ContinuousBatcher, Joining
from batching.job import Caller, Job
from batching.stream import TokenStream
from batching.worker import Worker
from handlers.chat.stops import StopMatcher
from handlers.chat.types import ChatRequest, Delta
from handlers.devices import is_out_of_memory
from handlers.spec import ModelSpec

if TYPE_CHECKING:
    from handlers.chat.engine import Prompt, TransformersEngine
    from handlers.chat.prompt import Detokenizer, PromptBuilder


_RESERVED = 1024
"""Tokens of cache that are set aside for an answer; few that may be longer are, and out-of-memory is survived."""


class ChatGeneration:
    """An answer in the making; see handlers.base.Generation."""

    def __init__(
        self, stream: TokenStream["Prompt", int], prompt_tokens: int, detokenizer: "Detokenizer", stops: StopMatcher
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self._stream = stream
        self._detokenizer = detokenizer
        self._stops = stops

    async def __aenter__(self) -> "ChatGeneration":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._stream.close()

    async def __aiter__(self) -> AsyncIterator[Delta]:
        """The text as it comes; the last delta has the finish reason. Raises what the job ended with."""
        count = 0
        while tokens := await self._stream.read():
            text = ""
            for token in tokens:
                count += 1
                text += self._stops.feed(self._detokenizer.feed(token))
                if self._stops.stopped:
                    self._stream.close()
                    yield Delta(text, count, "stop")
                    return
            if text:
                yield Delta(text, count)
        end = self._stops.feed(self._detokenizer.flush())
        yield Delta(end + self._stops.flush(), count, "stop" if self._stops.stopped else self._stream.finish_reason)


class TransformersChatHandler:
    """A causal language model run by transformers."""

    _batcher: ContinuousBatcher["Prompt", int]
    _prompts: "PromptBuilder"
    _new_detokenizer: "Callable[[], Detokenizer]"

    def __init__(self, spec: ModelSpec, open_source: Callable[[str], Path]) -> None:
        self.spec = spec
        self._open_source = open_source
        self._worker = Worker(spec.id)
        self._preparation = Worker(f"{spec.id} prompts")
        self._facts: Mapping[str, Any] = {}

    async def load(self) -> None:
        engine = await self._worker.run(self._load)
        self._batcher = ContinuousBatcher(
            self.spec.id, engine, self.spec.limits, worker=self._worker, is_out_of_memory=is_out_of_memory
        )

    async def run(self) -> None:
        await self._batcher.run()

    async def drain(self) -> None:
        await self._batcher.drain()

    def describe(self) -> Mapping[str, Any]:
        return {"capabilities": ["chat"], "max_model_len": self.spec.max_model_len, **self._facts}

    async def open(self, request: ChatRequest, caller: Caller) -> ChatGeneration:
        """Admission is asked before the prompt is tokenized (is there a place?) and after (is there room for it?)."""
        with self._batcher.place(caller):
            prompt = await self._preparation.run(self._prompts.build, _seeded(request))
        job: Job[Prompt, int] = Job(prompt, caller, cost=len(prompt.token_ids) + min(prompt.max_tokens, _RESERVED))
        stream = self._batcher.open(job)
        return ChatGeneration(stream, len(prompt.token_ids), self._new_detokenizer(), StopMatcher(request.stop))

    def _load(self) -> "TransformersEngine":
        from handlers.chat.engine import TransformersEngine
        from handlers.chat.loading import load
        from handlers.chat.prompt import Detokenizer, PromptBuilder
        from handlers.pretrained import placement

        loaded = load(self.spec, self._open_source(self.spec.source))
        engine = TransformersEngine(loaded.model, loaded.eos_token_ids)
        self._facts = {"max_model_len": loaded.max_model_len, **placement(loaded.model)}
        self._prompts = PromptBuilder(loaded.tokenizer, loaded.max_model_len)
        self._new_detokenizer = lambda: Detokenizer(loaded.tokenizer)
        self._warm_up(engine)
        return engine

    def _warm_up(self, engine: "TransformersEngine") -> None:
        """One prompt and one decoding step: the first run of each kind allocates and selects kernels."""
        prompt = self._prompts.build(ChatRequest([{"role": "user", "content": "Hello"}], max_tokens=2))
        engine.step([Joining(0, prompt, ())], [])
        engine.step([], [])
        engine.reset()


def _seeded(request: ChatRequest) -> ChatRequest:
    """A request without a seed gets one of its own, so that every draw has a source."""
    if request.sampling.seed is not None:
        return request
    return replace(request, sampling=replace(request.sampling, seed=secrets.randbits(63)))
