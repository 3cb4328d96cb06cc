"""The chat handler end to end on a tiny random model: real loading, real tokenizer, real batcher."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from batching.errors import DeadlineExceeded, QueueFull
from batching.job import Caller
from batching.limits import Limits
from handlers.chat.handler import TransformersChatHandler
from handlers.chat.types import ChatRequest, CompletionRequest, Delta, Sampling
from handlers.errors import InvalidRequest, ModelLoadError
from handlers.spec import ModelSpec, Task
from handlers.tokenization import load_tokenizer
from tests.handlers.running import running
from tests.handlers.tiny import save_chat_model

pytestmark = pytest.mark.anyio

LIMITS = Limits(max_queue_size=2, max_batch_size=2, max_batch_cost=512)
ROOM = Limits(max_queue_size=8, max_batch_size=8, max_batch_cost=4096)
GREEDY = Sampling(temperature=0)
PROMPT_TOKENS = 5
"""Of "Hi": the mark of its role, two letters, the mark of its end and that of the answer's role."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("chat"))


@asynccontextmanager
async def serving(folder: Path, limits: Limits = LIMITS, **options: Any) -> AsyncIterator[TransformersChatHandler]:
    spec = ModelSpec("tiny", Task.CHAT, "dir:somewhere", dtype="float32", limits=limits, **options)
    async with running(TransformersChatHandler(spec, lambda source: folder)) as handler:
        yield handler


def request(text: str = "Hi", role: str = "user", **options: object) -> ChatRequest:
    options = {"max_tokens": 12, "sampling": GREEDY, **options}
    return ChatRequest([{"role": role, "content": text}], **options)  # type: ignore[arg-type]


def completion(*prompts: str | Sequence[int], **options: Any) -> CompletionRequest:
    return CompletionRequest(prompts, **{"max_tokens": 12, "sampling": GREEDY, **options})


async def complete(handler: TransformersChatHandler, request: CompletionRequest) -> list[Delta]:
    async with await handler.complete(request, Caller()) as generation:
        return [delta async for delta in generation]


def texts_of(deltas: Sequence[Delta]) -> list[str]:
    """The text of every answer."""
    texts: dict[int, str] = {}
    for delta in deltas:
        texts[delta.index] = texts.get(delta.index, "") + delta.text
    return [texts[index] for index in sorted(texts)]


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
        ended = {outcome: count for outcome, count in handler.stats().batches.outcomes.items() if count}
    assert "".join(delta.text for delta in deltas) == whole[: whole.index(stop)]
    assert deltas[-1].finish_reason == "stop"
    assert deltas[-1].completion_tokens < 40
    assert ended == {"completed": 2}


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


# Several answers


async def test_n_answers_come_from_one_prompt_each_with_its_own_end(folder: Path) -> None:
    sampling = Sampling(temperature=2.0, seed=5)
    async with serving(folder, ROOM) as handler:
        async with await handler.open(request(n=3, sampling=sampling), Caller()) as generation:
            deltas = [delta async for delta in generation]
        alone = [texts_of(await answer(handler, request(sampling=replace(sampling, seed=5 + i))))[0] for i in range(3)]
    assert texts_of(deltas) == alone
    ends = {delta.index: (delta.finish_reason, delta.completion_tokens) for delta in deltas if delta.finish_reason}
    assert sorted(ends) == [0, 1, 2]
    assert all(reason in ("stop", "length") and tokens <= 12 for reason, tokens in ends.values())
    assert generation.prompt_tokens == PROMPT_TOKENS


async def test_a_stop_text_ends_one_of_several_answers(folder: Path) -> None:
    sampling = Sampling(temperature=2.0, seed=5)
    async with serving(folder, ROOM) as handler:
        whole = texts_of(await answer(handler, request(n=2, max_tokens=24, sampling=sampling)))
        stop = next(character for character in whole[0] if character not in whole[1])
        deltas = await answer(handler, request(n=2, max_tokens=24, sampling=sampling, stop=(stop,)))
    assert texts_of(deltas) == [whole[0].partition(stop)[0], whole[1]]


async def test_more_answers_than_may_wait_are_refused_all_together(folder: Path) -> None:
    async with serving(folder, Limits(max_queue_size=3, max_batch_size=1)) as handler:
        async with await handler.open(request(max_tokens=200), Caller()) as running:
            assert await anext(aiter(running))
            async with await handler.open(request(), Caller()):
                with pytest.raises(QueueFull):
                    await handler.open(request(n=3), Caller())
                async with await handler.open(request(n=2), Caller()):
                    """Two do fit."""


# Log-probabilities


async def test_log_probabilities_come_with_every_token(folder: Path) -> None:
    async with serving(folder) as handler:
        deltas = await answer(handler, request(sampling=Sampling(temperature=0, top_logprobs=2)))
    logprobs = [token for delta in deltas for token in delta.logprobs]
    assert len(logprobs) == deltas[-1].completion_tokens
    for token in logprobs:
        assert len(token.top) == 2
        assert (token.top[0].bytes, token.top[0].logprob) == (token.bytes, token.logprob)


# The prefix cache


async def test_a_prompt_that_comes_again_is_told_to_be_cached(folder: Path) -> None:
    async with serving(folder) as handler:
        cached = []
        for _ in range(2):
            async with await handler.open(request("x" * 100), Caller()) as generation:
                deltas = [delta async for delta in generation]
            cached.append((generation.cached_tokens, texts_of(deltas)))
        stats = handler.stats()
    assert [count for count, _ in cached] == [0, 96]
    assert stats.prompt_tokens == 2 * generation.prompt_tokens and stats.cached_tokens == 96
    assert cached[0][1] == cached[1][1]


async def test_the_answers_to_one_prompt_count_what_was_cached_once(folder: Path) -> None:
    async with serving(folder, ROOM) as handler:
        await answer(handler, request("x" * 100))
        async with await handler.open(request("x" * 100, n=3), Caller()) as generation:
            assert len(texts_of([delta async for delta in generation])) == 3
    assert generation.cached_tokens == 96


async def test_without_memory_for_it_nothing_is_cached(folder: Path) -> None:
    async with serving(folder, prefix_cache_bytes=0) as handler:
        for _ in range(2):
            async with await handler.open(request("x" * 100), Caller()) as generation:
                assert [delta async for delta in generation]
            assert generation.cached_tokens == 0


# Completions


async def test_a_plain_prompt_is_completed_without_the_template(folder: Path) -> None:
    async with serving(folder) as handler:
        async with await handler.complete(completion("abc"), Caller()) as generation:
            as_text = [delta async for delta in generation]
        token_ids = load_tokenizer(folder).encode("abc").ids
        as_tokens = await complete(handler, completion(token_ids))
    assert generation.prompt_tokens == 3
    assert as_text[-1].completion_tokens == 12
    assert texts_of(as_text) == texts_of(as_tokens)


async def test_choices_are_numbered_prompt_by_prompt(folder: Path) -> None:
    sampling = Sampling(temperature=2.0, seed=5)
    async with serving(folder, ROOM) as handler:
        together = texts_of(await complete(handler, completion("abc", "xyz", n=2, sampling=sampling)))
        apart = [texts_of(await complete(handler, completion(text, n=2, sampling=sampling))) for text in ("abc", "xyz")]
    assert together == [*apart[0], *apart[1]]


async def test_an_echo_is_the_prompt_and_the_answer(folder: Path) -> None:
    async with serving(folder) as handler:
        plain = texts_of(await complete(handler, completion("abc")))
        echoed = texts_of(await complete(handler, completion("abc", echo=True)))
    assert echoed == ["abc" + plain[0]]


async def test_an_echo_with_log_probabilities_has_those_of_the_prompt(folder: Path) -> None:
    sampling = Sampling(temperature=0, top_logprobs=1)
    async with serving(folder) as handler:
        deltas = await complete(handler, completion("abc", echo=True, sampling=sampling, max_tokens=2))
    logprobs = [token for delta in deltas for token in delta.logprobs]
    assert [token.text for token in logprobs[:3]] == ["a", "b", "c"]
    assert [token.logprob is None for token in logprobs] == [True, False, False, False, False]


async def test_the_best_of_several_are_the_likeliest(folder: Path) -> None:
    sampling = Sampling(temperature=2.0, seed=5, top_logprobs=0, ignore_eos=True)
    async with serving(folder, ROOM) as handler:
        deltas = await complete(handler, completion("abc", n=4, sampling=sampling))
        best = await complete(handler, completion("abc", n=2, best_of=4, sampling=sampling))
    likelihood = [0.0] * 4
    for delta in deltas:
        likelihood[delta.index] += sum(token.logprob or 0.0 for token in delta.logprobs)
    order = sorted(range(4), key=lambda i: -likelihood[i])
    assert texts_of(best) == [texts_of(deltas)[i] for i in order[:2]]


@pytest.mark.parametrize(
    ("refused", "param"),
    [
        (completion("x" * 300), "prompt"),
        (completion([5] * 300), "prompt"),
        (completion([5, 100_000]), "prompt"),
        (completion([-1]), "prompt"),
        (completion(""), "prompt"),
        (completion("a", suffix="b"), "suffix"),
        (completion("a", sampling=Sampling(logit_bias={100_000: 1.0})), "logit_bias"),
        (completion("a", sampling=Sampling(stop_token_ids=(-1,))), "stop_token_ids"),
    ],
)
async def test_a_completion_that_cannot_be_is_refused(folder: Path, refused: CompletionRequest, param: str) -> None:
    async with serving(folder) as handler:
        with pytest.raises(InvalidRequest) as error:
            await handler.complete(refused, Caller())
        assert error.value.param == param
        assert (await answer(handler, request()))[-1].completion_tokens == 12


# Admission and ends


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
