"""Whoever asks for what beside whom: a vector is the one its text has alone, and mistakes stay with who made them."""

from collections.abc import Sequence
from pathlib import Path

import anyio
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from batching.errors import EngineFailed
from batching.job import Caller
from batching.limits import Limits
from handlers.embeddings.handler import SentenceEncoderHandler
from handlers.embeddings.types import EmbeddingRequest, Embeddings
from handlers.encoders.bert import Bert
from handlers.errors import InvalidRequest
from handlers.spec import ModelSpec, Task
from tests.handlers.tiny import WORDS, save_embedding_model

pytestmark = pytest.mark.anyio

BROKEN = "mat"
"""A word whose vector is not finite."""

WHOLE_WORDS = [word for word in WORDS[4:] if word != BROKEN]
OVERLONG = "red " * 40

texts = st.lists(st.sampled_from(WHOLE_WORDS), min_size=1, max_size=30).map(" ".join)
few_texts = st.lists(texts, min_size=1, max_size=6, unique=True)
limits = st.builds(
    Limits, max_batch_size=st.integers(1, 8), max_batch_cost=st.integers(1, 80), max_queue_size=st.just(100)
)
cache_bytes = st.sampled_from([0, 800, 1 << 20])
"""None, two vectors' worth, and enough."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_embedding_model(tmp_path_factory.mktemp("embeddings"))


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, np.ndarray]:
    """Vectors of texts that were computed without any company, by text; filled as they are needed."""
    return {}


async def handler_of(folder: Path, limits: Limits, kept: int) -> SentenceEncoderHandler:
    spec = ModelSpec("tiny", Task.EMBEDDINGS, "dir:x", dtype="float32", limits=limits, embedding_cache_bytes=kept)
    handler = SentenceEncoderHandler(spec, lambda source: folder)
    await handler.load()
    encoder = handler._loaded.encoder
    assert isinstance(encoder, Bert)
    encoder._words[WORDS.index(BROKEN)] = float("nan")
    return handler


async def ask_all(
    handler: SentenceEncoderHandler, requests: Sequence[Sequence[str]], rounds: int = 1
) -> list[list[Embeddings | Exception]]:
    """What becomes of requests that come at once, and of the same ones again, round by round."""
    outcomes: list[list[Embeddings | Exception]] = []

    async def ask(i: int, answers: list[Embeddings | Exception]) -> None:
        try:
            answers[i] = await handler.embed(EmbeddingRequest(requests[i]), Caller())
        except (EngineFailed, InvalidRequest) as error:
            answers[i] = error

    async with anyio.create_task_group() as running:
        running.start_soon(handler.run)
        for _ in range(rounds):
            outcomes.append([EngineFailed("no answer")] * len(requests))
            async with anyio.create_task_group() as asking:
                for i in range(len(requests)):
                    asking.start_soon(ask, i, outcomes[-1])
        running.cancel_scope.cancel()
    return outcomes


def assert_alike(ours: np.ndarray, theirs: np.ndarray) -> None:
    cosine = torch.cosine_similarity(torch.from_numpy(ours), torch.from_numpy(theirs), dim=0, eps=1e-12)
    assert cosine >= 0.99999


@settings(max_examples=20)
@given(st.lists(few_texts, min_size=1, max_size=6), limits, cache_bytes)
async def test_neither_batch_nor_order_nor_cache_changes_a_vector(
    folder: Path, alone: dict[str, np.ndarray], requests: list[list[str]], limits: Limits, kept: int
) -> None:
    for text in {text for request in requests for text in request} - alone.keys():
        [[single]] = await ask_all(await handler_of(folder, Limits(), 0), [[text]])
        assert isinstance(single, Embeddings)
        alone[text] = single.vectors[0]
    for answers in await ask_all(await handler_of(folder, limits, kept), requests, rounds=2):
        for request, answer in zip(requests, answers, strict=True):
            assert isinstance(answer, Embeddings), answer
            assert answer.tokens == sum(len(text.split()) + 2 for text in request)
            for text, vector in zip(request, answer.vectors, strict=True):
                assert_alike(vector, alone[text])


@settings(max_examples=20)
@given(
    st.lists(st.tuples(few_texts, st.sampled_from([None, BROKEN, OVERLONG])), min_size=2, max_size=6),
    limits,
    cache_bytes,
)
async def test_a_request_that_fails_does_so_alone_and_always(
    folder: Path, requests: list[tuple[list[str], str | None]], limits: Limits, kept: int
) -> None:
    handler = await handler_of(folder, limits, kept)
    whole = [[*texts, bad] if bad else texts for texts, bad in requests]
    expected = {None: Embeddings, BROKEN: EngineFailed, OVERLONG: InvalidRequest}
    for answers in await ask_all(handler, whole, rounds=2):
        assert [type(answer) for answer in answers] == [expected[bad] for _, bad in requests]
