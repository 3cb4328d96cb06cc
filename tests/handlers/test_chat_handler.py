"""The chat handler end to end on a tiny random model: real loading, real tokenizer, real batcher."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from batching.errors import DeadlineExceeded, QueueFull
from batching.job import Caller
from batching.limits import Limits
from handlers.chat.handler import TransformersChatHandler
from handlers.chat.types import ChatRequest, Delta, Sampling
from handlers.errors import InvalidRequest, ModelLoadError
from handlers.spec import ModelSpec, Task
from tests.handlers.tiny import save_chat_model

pytestmark = pytest.mark.anyio

LIMITS = Limits(max_queue_size=2, max_batch_size=2, max_batch_cost=512)
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("chat"))


@asynccontextmanager
async def serving(folder: Path, limits: Limits = LIMITS) -> AsyncIterator[TransformersChatHandler]:
    spec = ModelSpec("tiny", Task.CHAT, "dir:somewhere", dtype="float32", limits=limits)
    handler = TransformersChatHandler(spec, lambda source: folder)
    await handler.load()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(handler.run)
        yield handler
        tasks.cancel_scope.cancel()


def request(text: str = "Hi", role: str = "user", **options: object) -> ChatRequest:
    options = {"max_tokens": 12, "sampling": GREEDY, **options}
    return ChatRequest([{"role": role, "content": text}], **options)  # type: ignore[arg-type]


async def answer(handler: TransformersChatHandler, chat: ChatRequest, caller: Caller | None = None) -> list[Delta]:
    async with await handler.open(chat, caller or Caller()) as generation:
        return [delta async for delta in generation]


async def test_an_answer_has_its_tokens_counted_and_a_reason_at_its_end(folder: Path) -> None:
    async with serving(folder) as handler:
        deltas = await answer(handler, request())
    assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert (deltas[-1].finish_reason, deltas[-1].completion_tokens) == ("length", 12)


async def test_concurrent_chats_share_steps_and_answer_as_if_alone(folder: Path) -> None:
    async with serving(folder) as handler:
        texts = ["Hi", "What a long prompt this is"]
        alone = ["".join(d.text for d in await answer(handler, request(text))) for text in texts]
        together: dict[str, str] = {}

        async def chat(text: str) -> None:
            together[text] = "".join(delta.text for delta in await answer(handler, request(text)))

        async with anyio.create_task_group() as chats:
            for text in texts:
                chats.start_soon(chat, text)
    assert [together[text] for text in texts] == alone


async def test_a_stop_sequence_ends_the_answer_before_itself(folder: Path) -> None:
    async with serving(folder) as handler:
        whole = "".join(delta.text for delta in await answer(handler, request(max_tokens=40)))
        stop = whole[10:12]
        deltas = await answer(handler, request(max_tokens=40, stop=(stop,)))
    assert "".join(delta.text for delta in deltas) == whole[: whole.index(stop)]
    assert deltas[-1].finish_reason == "stop"
    assert deltas[-1].completion_tokens < 40


async def test_the_same_seed_gives_the_same_answer_and_no_seed_a_fresh_one(folder: Path) -> None:
    async with serving(folder) as handler:

        async def text(seed: int | None) -> str:
            deltas = await answer(handler, request(sampling=Sampling(temperature=2.0, seed=seed), max_tokens=24))
            return "".join(delta.text for delta in deltas)

        assert await text(7) == await text(7)
        assert len({await text(None), await text(None), await text(8)}) == 3


async def test_an_answer_without_max_tokens_may_fill_the_context(folder: Path) -> None:
    async with serving(folder) as handler:
        async with await handler.open(request(max_tokens=None), Caller()) as generation:
            deltas = [delta async for delta in generation]
    assert deltas[-1].completion_tokens + generation.prompt_tokens <= 256
    assert deltas[-1].finish_reason in ("length", "stop")


@pytest.mark.parametrize("chat", [request("x" * 300), request("x", max_tokens=255), request("x" * 1_000_000)])
async def test_what_does_not_fit_the_context_is_refused(folder: Path, chat: ChatRequest) -> None:
    async with serving(folder) as handler:
        with pytest.raises(InvalidRequest, match="maximum context length is 256 tokens") as refused:
            await handler.open(chat, Caller())
    assert (refused.value.param, refused.value.code) == ("messages", "context_length_exceeded")


async def test_a_message_that_the_template_refuses_is_the_callers_error(folder: Path) -> None:
    async with serving(folder) as handler:
        with pytest.raises(InvalidRequest, match="no such role") as refused:
            await handler.open(request(role="forbidden"), Caller())
    assert refused.value.param == "messages"


async def test_a_developer_speaks_as_system_where_the_template_knows_no_developer(folder: Path) -> None:
    async with serving(folder) as handler:
        as_developer, as_system = [await answer(handler, request(role=role)) for role in ("developer", "system")]
    assert as_developer == as_system


async def test_more_chats_than_may_run_and_wait_are_refused_at_once(folder: Path) -> None:
    async with serving(folder, Limits(max_queue_size=1, max_batch_size=1)) as handler:
        async with await handler.open(request(max_tokens=200), Caller()) as running:
            assert await anext(aiter(running))
            async with await handler.open(request(), Caller()):
                with pytest.raises(QueueFull):
                    await handler.open(request(), Caller())


async def test_leaving_early_frees_the_row(folder: Path) -> None:
    async with serving(folder, Limits(max_batch_size=1)) as handler:
        async with await handler.open(request(max_tokens=200), Caller()) as abandoned:
            assert await anext(aiter(abandoned))
        assert (await answer(handler, request()))[-1].completion_tokens == 12


async def test_a_deadline_in_the_past_ends_the_answer(folder: Path) -> None:
    async with serving(folder) as handler:
        with pytest.raises(DeadlineExceeded):
            await answer(handler, request(), Caller(deadline=anyio.current_time() - 1))


async def test_draining_lets_the_running_answer_finish(folder: Path) -> None:
    async with serving(folder) as handler:
        async with await handler.open(request(), Caller()) as generation, anyio.create_task_group() as draining:
            draining.start_soon(handler.drain)
            deltas = [delta async for delta in generation]
    assert deltas[-1].completion_tokens == 12


async def test_a_folder_without_a_model_is_one_clear_line(tmp_path: Path) -> None:
    handler = TransformersChatHandler(ModelSpec("gone", Task.CHAT, "dir:x"), lambda source: tmp_path)
    with pytest.raises(ModelLoadError, match="model gone: ") as failed:
        await handler.load()
    assert "\n" not in str(failed.value)


async def test_a_context_above_the_models_own_is_refused_at_load(folder: Path) -> None:
    spec = ModelSpec("tiny", Task.CHAT, "dir:x", max_model_len=4096)
    with pytest.raises(ModelLoadError, match="max_model_len 4096 is above the model's own 256"):
        await TransformersChatHandler(spec, lambda source: folder).load()
