"""The real engine in the real batcher: random requests, clients that leave, memory that runs out, rows gone wrong."""

import asyncio
import random
from contextlib import aclosing
from dataclasses import dataclass, field

import pytest
import torch

from batching.errors import EngineFailed
from batching.generation import ContinuousBatcher
from batching.job import Job
from batching.limits import Limits
from handlers.chat.engine import Generated, Prompt
from handlers.chat.packed import PackedBatch
from tests.batching.fakes import SteppedWorker, serving
from tests.clock import MANUAL_CLOCK, advance, settle
from tests.handlers.engines import GREEDY, TellingModel, engine_of

pytestmark = pytest.mark.anyio

PROMPTS = [[*range(i, i + length)] for i, length in enumerate((1, 3, 33, 64, 126))]
POISON = TellingModel().answer(PROMPTS[1], 4)[3]


@pytest.fixture
def anyio_backend() -> object:
    return MANUAL_CLOCK


class ShrinkingModel(TellingModel):
    """Has room for `capacity` runs of tokens a step."""

    capacity = 100
    overflows = 0

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        if len(batch.logits_at) > self.capacity:
            self.overflows += 1
            raise MemoryError
        return super().forward(batch)


@dataclass
class Client:
    """Asks for `n` answers to one prompt."""

    batcher: ContinuousBatcher[Prompt, Generated]
    prompt: Prompt
    n: int
    tokens: dict[int, list[int]] = field(default_factory=dict)
    failed: bool = False

    def start(self) -> None:
        jobs: list[Job[Prompt, Generated]] = [Job(self.prompt, cost=len(self.prompt.token_ids)) for _ in range(self.n)]
        self.group = self.batcher.open_all(jobs)
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async with self.group, aclosing(self.group.read()) as pieces:
            try:
                async for i, tokens in pieces:
                    self.tokens.setdefault(i, []).extend(token.choice.token for token in tokens)
            except EngineFailed:
                self.failed = True

    def assert_right(self, model: TellingModel) -> None:
        whole = model.answer(self.prompt.token_ids, self.prompt.max_tokens)
        poisoned = POISON in [self.prompt.token_ids[-1], *whole[:-1]]
        for tokens in self.tokens.values():
            assert tokens == whole[: len(tokens)]
        if not self.task.cancelled():
            assert self.failed == poisoned
            assert poisoned or [len(tokens) for tokens in self.tokens.values()] == [len(whole)] * self.n


async def test_every_answer_is_right_and_no_byte_is_left() -> None:
    chance, model, worker = random.Random(1), ShrinkingModel(poison=POISON), SteppedWorker()
    engine = engine_of(model, prefix_cache_bytes=3000)
    limits = Limits(max_queue_size=1000, max_queue_cost=10**9, max_batch_size=8, max_batch_cost=600)
    batcher = ContinuousBatcher("model", engine, limits, worker=worker)
    clients: list[Client] = []
    async with serving(batcher):
        for _ in range(800):
            event = chance.choices(["come", "leave", "memory", "step"], [3, 1, 0.3, 10])[0]
            if event == "come":
                prompt = Prompt(chance.choice(PROMPTS), chance.randint(1, 12), GREEDY)
                clients.append(Client(batcher, prompt, chance.randint(1, 3)))
                clients[-1].start()
            elif event == "leave" and clients:
                chance.choice(clients).task.cancel()
            elif event == "memory":
                model.capacity = chance.choice([3, 5, 100, 100])
                await advance(60.0)  # batches that were made smaller grow again
            else:
                worker.let_through()
            await settle(5)
        worker.open()
        await batcher.drain()
        await settle()
        for client in clients:
            assert client.task.done()
            client.assert_right(model)
        assert (batcher.running, batcher.waiting) == (0, 0)
        assert engine.step([], []) == []
        assert engine.cache_bytes == 0
    assert model.overflows > 0
    assert {client.failed for client in clients} == {True, False}
