"""Chat: messages in, streams of text out, over one batch that all callers share."""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batching.generation import ContinuousBatcher, Joining
from batching.job import Caller, Job
from batching.worker import Worker
from handlers.chat.types import IMAGE_LIMITS, ChatRequest, CompletionRequest, ImageInput, ImageLimits, Sampling
from handlers.devices import is_out_of_memory
from handlers.errors import InvalidRequest
from handlers.spec import ModelSpec
from handlers.stats import ModelStats

if TYPE_CHECKING:
    from handlers.chat.answer import Answer
    from handlers.chat.engine import Generated, Prompt, StepwiseEngine
    from handlers.chat.generation import BestOf, ChatGeneration
    from handlers.chat.preparation import Preparation


_RESERVED = 1024
"""Tokens of cache that are set aside for an answer; few that may be longer are, and out-of-memory is survived."""

NewAnswer = Callable[[int], "Answer"]


class TransformersChatHandler:
    """A causal language model in the format of transformers."""

    _batcher: ContinuousBatcher["Prompt", "Generated"]
    _preparation: "Preparation"

    def __init__(
        self, spec: ModelSpec, open_source: Callable[[str], Path], *, image_limits: ImageLimits = IMAGE_LIMITS
    ) -> None:
        self.spec = spec
        self._image_limits = image_limits
        self._open_source = open_source
        self._worker = Worker(spec.id)
        self._preparing = Worker(f"{spec.id} prompts")
        self._facts: Mapping[str, Any] = {}
        self._reads_images = False
        self._prompt_tokens = 0
        self._cached_tokens = 0

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
        capabilities = ["chat", "completions", *(["vision"] if self._reads_images else [])]
        return {"capabilities": capabilities, "max_model_len": self.spec.max_model_len, **self._facts}

    def check_images(self, images: Sequence[ImageInput]) -> None:
        """Before anything is fetched or decoded. Raises InvalidRequest."""
        if images and not self._reads_images:
            message = f"The model `{self.spec.id}` reads text only. Leave the image out, or choose a model with vision."
            raise InvalidRequest(message, images[0].param, "unsupported_value")
        if len(images) > (most := self._image_limits.max_images):
            message = f"The messages hold {len(images)} images; at most {most} are taken. Send fewer."
            raise InvalidRequest(message, images[most].param, "invalid_value")

    def stats(self) -> ModelStats:
        return ModelStats(self._batcher.stats(), prompt_tokens=self._prompt_tokens, cached_tokens=self._cached_tokens)

    async def open(self, request: ChatRequest, caller: Caller) -> "ChatGeneration":
        """Admission is asked before the prompt is tokenized (is there a place?) and after (is there room for it?)."""
        self.check_images(request.images)
        with self._batcher.place(caller, request.n):
            prompt, new_answer = await self._preparing.run(self._preparation.chat, request)
        return self._generate([prompt], request.n, caller, new_answer)

    async def complete(self, request: CompletionRequest, caller: Caller) -> "ChatGeneration | BestOf":
        """As `open`, for plain prompts."""
        from handlers.chat.generation import BestOf

        a_prompt = request.best_of or request.n
        with self._batcher.place(caller, len(request.prompts) * a_prompt):
            prompts, new_answer = await self._preparing.run(self._preparation.completion, request)
        generation = self._generate(prompts, a_prompt, caller, new_answer)
        if a_prompt == request.n:
            return generation
        groups = [range(i * a_prompt, (i + 1) * a_prompt) for i in range(len(prompts))]
        return BestOf(generation, groups, request.n)

    def _generate(
        self, prompts: "Sequence[Prompt]", answers_a_prompt: int, caller: Caller, new_answer: NewAnswer
    ) -> "ChatGeneration":
        from handlers.chat.generation import ChatGeneration

        jobs = [_job(_seeded(prompt, j), caller) for prompt in prompts for j in range(answers_a_prompt)]
        streams = self._batcher.open_all(jobs)
        answers = [new_answer(i) for i in range(len(jobs))]
        generation = ChatGeneration(streams, prompts, answers, on_cached=self._count_cached)
        self._prompt_tokens += generation.prompt_tokens
        return generation

    def _count_cached(self, tokens: int) -> None:
        self._cached_tokens += tokens

    def _load(self) -> "StepwiseEngine":
        from handlers.chat.engine import StepwiseEngine
        from handlers.chat.loading import load
        from handlers.chat.preparation import Preparation

        loaded = load(self.spec, self._open_source(self.spec.source))
        engine = StepwiseEngine(loaded.model, loaded.eos_token_ids, prefix_cache_bytes=self.spec.prefix_cache_bytes)
        self._facts = {
            "max_model_len": loaded.max_model_len,
            "device": str(loaded.model.device),
            "dtype": str(loaded.model.kv_shape.dtype).removeprefix("torch."),
        }
        self._reads_images = loaded.reader is not None
        self._preparation = Preparation(loaded, self._image_limits)
        self._warm_up(engine)
        return engine

    def _warm_up(self, engine: "StepwiseEngine") -> None:
        """A prompt and decoding steps: the first run of each kind allocates and selects kernels."""
        messages = [{"role": "user", "content": "Hello"}]
        prompt, _ = self._preparation.chat(ChatRequest(messages, 3, Sampling(temperature=0, ignore_eos=True)))
        engine.step([Joining(0, prompt, ())], [])
        engine.step([], [])
        engine.reset()


def _job(prompt: "Prompt", caller: Caller) -> "Job[Prompt, Generated]":
    return Job(prompt, caller, cost=len(prompt.token_ids) + min(prompt.max_tokens, _RESERVED))


def _seeded(prompt: "Prompt", answer: int) -> "Prompt":
    """A seed of its own for every answer, so that a preempted one draws the same tokens again."""
    seed = prompt.sampling.seed
    seed = secrets.randbits(63) if seed is None else seed + answer
    return replace(prompt, sampling=replace(prompt.sampling, seed=seed))
