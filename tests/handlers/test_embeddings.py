"""The embeddings handler on a tiny random model, against transformers run one text at a time."""

import json
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from batching.errors import EngineFailed
from batching.job import Caller
from batching.limits import Limits
from handlers.embeddings.engine import Embedder, load
from handlers.embeddings.handler import SentenceEncoderHandler
from handlers.embeddings.openai_tokens import OpenAITokens
from handlers.embeddings.types import WHOLE, EmbeddingRequest, Embeddings, PromptChoice
from handlers.encoders.bert import Bert
from handlers.errors import InvalidRequest, ModelLoadError
from handlers.spec import ModelSpec, Task
from handlers.starter import EMBEDDINGS
from handlers.stats import CacheStats
from tests.handlers.running import running
from tests.handlers.tiny import save_embedding_model

pytestmark = pytest.mark.anyio

LIMITS = Limits()
TEXTS = ["the cat", "a dog sat on the mat", "red", "one two three four five one two three", "blue mat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_embedding_model(tmp_path_factory.mktemp("embeddings"))


def spec(limits: Limits = LIMITS, **options: object) -> ModelSpec:
    return ModelSpec("tiny", Task.EMBEDDINGS, "dir:x", dtype="float32", limits=limits, **options)  # type: ignore[arg-type]


@asynccontextmanager
async def serving(folder: Path, limits: Limits = LIMITS, **options: object) -> AsyncIterator[SentenceEncoderHandler]:
    async with running(SentenceEncoderHandler(spec(limits, **options), lambda source: folder)) as handler:
        yield handler


def reference(folder: Path, text: str, pooling: str = "mean", normalize: bool = True) -> np.ndarray:
    encoded = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt", return_token_type_ids=False)
    hidden = AutoModel.from_pretrained(folder)(**encoded).last_hidden_state[0].detach()
    vector = {"mean": hidden.mean(dim=0), "cls": hidden[0], "last": hidden[-1]}[pooling]
    return np.asarray(torch.nn.functional.normalize(vector, dim=0) if normalize else vector)


async def embed(handler: SentenceEncoderHandler, *inputs: object, **options: object) -> Embeddings:
    return await handler.embed(EmbeddingRequest(inputs, **options), Caller())  # type: ignore[arg-type]


@pytest.mark.parametrize("max_batch_cost", [6, 1000])
async def test_batched_vectors_equal_those_of_each_text_alone(folder: Path, max_batch_cost: int) -> None:
    async with serving(folder, Limits(max_batch_cost=max_batch_cost)) as handler:
        vectors = (await embed(handler, *TEXTS)).vectors
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, [reference(folder, text) for text in TEXTS], atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("normalize", [True, False])
async def test_pooling_and_normalisation_are_the_folders_own(tmp_path: Path, pooling: str, normalize: bool) -> None:
    folder = save_embedding_model(tmp_path, pooling=pooling, normalize=normalize)
    async with serving(folder) as handler:
        vectors = (await embed(handler, *TEXTS)).vectors
    expected = [reference(folder, text, pooling, normalize) for text in TEXTS]
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


async def test_tokens_are_counted_with_the_special_ones(folder: Path) -> None:
    async with serving(folder) as handler:
        assert (await embed(handler, "the cat", "red")).tokens == (1 + 2 + 1) + (1 + 1 + 1)
        await embed(handler, "red")
        assert handler.stats().prompt_tokens == 7 + 3


async def test_token_ids_of_the_model_give_the_vector_of_their_text(folder: Path) -> None:
    ids = AutoTokenizer.from_pretrained(folder)("a dog sat", add_special_tokens=False)["input_ids"]
    async with serving(folder) as handler:
        by_ids, by_text = await embed(handler, ids), await embed(handler, "a dog sat")
    np.testing.assert_array_equal(by_ids.vectors, by_text.vectors)
    assert by_ids.tokens == by_text.tokens


@pytest.mark.parametrize("inputs", [1, 64, 65, 200])
async def test_lists_of_every_length_are_tokenized_whole_and_in_order(folder: Path, inputs: int) -> None:
    async with serving(folder) as handler:
        texts = [TEXTS[i % len(TEXTS)] for i in range(inputs)]
        several = await embed(handler, *texts)
        singles = {text: (await embed(handler, text)).vectors[0] for text in TEXTS}
    np.testing.assert_allclose(several.vectors, [singles[text] for text in texts], atol=1e-5)


async def test_a_text_that_no_tokenizer_could_shorten_enough_is_refused_unread(folder: Path) -> None:
    async with serving(folder) as handler:
        with pytest.raises(InvalidRequest, match="Input 0 is 1000000 characters long"):
            await embed(handler, " " * 1_000_000)


def openai_tokens(folder: Path) -> Path:
    """tiktoken's format: a piece in base64 and its rank on each line."""
    pieces = [b"the", b" cat", b"\xe2\x82", b"\xac"]
    lines = [b"%b %d" % (b64encode(piece), rank) for rank, piece in enumerate(pieces)]
    (folder / "9b5ad71b2ce5302211f9c61530b329a4922fc6a4").write_bytes(b"\n".join(lines) + b"\n")
    return folder


def test_openai_ids_become_the_text_they_stand_for(tmp_path: Path) -> None:
    tokens = OpenAITokens(openai_tokens(tmp_path))
    assert tokens.decode([0, 1, 2, 3]) == "the cat\u20ac"
    assert tokens.decode([0, 2]) == "the\ufffd"
    with pytest.raises(KeyError):
        tokens.decode([4])


async def test_openai_ids_give_the_vector_of_their_text(folder: Path, tmp_path: Path) -> None:
    sources = {"dir:x": folder, "dir:tokens": openai_tokens(tmp_path)}
    handler = SentenceEncoderHandler(spec(openai_tokens="dir:tokens"), sources.__getitem__)
    async with running(handler):
        by_ids, by_text = await embed(handler, [0, 1], openai_ids=True), await embed(handler, "the cat")
        with pytest.raises(InvalidRequest, match="a token id that OpenAI's tokenizer does not know") as refused:
            await embed(handler, [0], [4], openai_ids=True)
    np.testing.assert_array_equal(by_ids.vectors, by_text.vectors)
    assert refused.value.param == "input[1]"


async def test_openai_ids_are_refused_where_their_vocabulary_is_not_at_hand(folder: Path) -> None:
    async with serving(folder) as handler:
        with pytest.raises(InvalidRequest, match="check_embedding_ctx_length=False"):
            await embed(handler, [5], openai_ids=True)


@pytest.mark.parametrize("bad", [-1, 19, 100_257])
async def test_ids_outside_the_vocabulary_are_refused_with_the_way_out(folder: Path, bad: int) -> None:
    async with serving(folder) as handler:
        with pytest.raises(InvalidRequest, match="check_embedding_ctx_length=False") as refused:
            await embed(handler, [5], [bad])
    assert refused.value.param == "input[1]"


async def test_an_overlong_text_is_refused_and_named(folder: Path) -> None:
    async with serving(folder) as handler:
        with pytest.raises(
            InvalidRequest, match="Input 1 is 42 tokens long, and `tiny` takes at most 32 tokens"
        ) as refused:
            await embed(handler, "red", "red " * 40)
    assert (refused.value.param, refused.value.code) == ("input[1]", "context_length_exceeded")


async def test_only_the_native_dimensions_are_given(folder: Path) -> None:
    async with serving(folder) as handler:
        assert (await embed(handler, "red", dimensions=16)).vectors.shape == (1, 16)
        with pytest.raises(InvalidRequest) as refused:
            await embed(handler, "red", dimensions=8)
    assert refused.value.param == "dimensions"


@pytest.mark.parametrize("normalize", [True, False])
async def test_matryoshka_vectors_are_the_first_numbers_of_the_whole(tmp_path: Path, normalize: bool) -> None:
    folder = save_embedding_model(tmp_path, normalize=normalize)
    async with serving(folder, matryoshka_dimensions=(8, 4)) as handler:
        cut = (await embed(handler, *TEXTS, dimensions=4)).vectors
        assert (await embed(handler, *TEXTS)).vectors.shape == (5, 16)
        with pytest.raises(InvalidRequest, match="trained for vectors of 16, 8 or 4 numbers, not 5"):
            await embed(handler, "red", dimensions=5)
        assert handler.describe()["matryoshka_dimensions"] == [8, 4]
        assert (cache := handler.stats().cache) and cache.misses == 5
    whole = torch.tensor(np.stack([reference(folder, text, normalize=normalize)[:4] for text in TEXTS]))
    np.testing.assert_allclose(cut, torch.nn.functional.normalize(whole) if normalize else whole, atol=1e-5)


async def test_lengths_that_vectors_may_have_are_read_from_the_models_config(tmp_path: Path) -> None:
    folder = save_embedding_model(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "matryoshka_dimensions": [8]}))
    assert load(spec(), folder).dimensions.shorter == (8,)


@pytest.mark.parametrize("models_own", [True, False])
async def test_normalisation_can_be_asked_for_and_left_out(tmp_path: Path, models_own: bool) -> None:
    folder = save_embedding_model(tmp_path, normalize=models_own)
    async with serving(folder) as handler:
        for normalize in (True, False):
            vectors = (await embed(handler, *TEXTS, normalize=normalize)).vectors
            expected = [reference(folder, text, normalize=normalize) for text in TEXTS]
            np.testing.assert_allclose(vectors, expected, atol=1e-5)


@pytest.mark.parametrize(("cut_to", "kept"), [(WHOLE, 30), (32, 30), (10, 8), (3, 1)])
async def test_long_inputs_are_cut_on_request_and_keep_their_special_tokens(
    folder: Path, cut_to: int, kept: int
) -> None:
    words = "red blue one two three four five".split() * 6
    ids = AutoTokenizer.from_pretrained(folder)(" ".join(words), add_special_tokens=False)["input_ids"]
    async with serving(folder) as handler:
        cut = await embed(handler, " ".join(words), "red", cut_to=cut_to)
        by_ids = await embed(handler, ids, cut_to=cut_to)
    np.testing.assert_allclose(cut.vectors[0], reference(folder, " ".join(words[:kept])), atol=1e-5)
    np.testing.assert_allclose(cut.vectors[1], reference(folder, "red"), atol=1e-5)
    np.testing.assert_array_equal(by_ids.vectors[0], cut.vectors[0])
    assert cut.tokens == (kept + 2) + 3


async def test_of_a_text_that_is_to_be_cut_only_the_beginning_is_read(folder: Path) -> None:
    async with serving(folder) as handler:
        assert (await embed(handler, "red " * 1_000_000, cut_to=4)).tokens == 4


@pytest.mark.parametrize(
    ("cut_to", "message"),
    [(33, "takes at most 32 tokens. Send -1"), (2, "puts 2 tokens around every input. Send at least 3"), (0, "puts 2")],
)
async def test_a_cut_that_cannot_be_made_is_refused(folder: Path, cut_to: int, message: str) -> None:
    async with serving(folder) as handler:
        with pytest.raises(InvalidRequest) as refused:
            await embed(handler, "red", cut_to=cut_to)
    assert message in refused.value.message
    assert refused.value.param == "truncate_prompt_tokens"


PROMPTS = {"prompts": {"query": "the cat ", "document": ""}}


async def test_prompts_go_before_texts(tmp_path: Path) -> None:
    folder = save_embedding_model(tmp_path, prompts=PROMPTS)
    async with serving(folder) as handler:
        plain = await embed(handler, "red")
        query = await embed(handler, "red", prompt=PromptChoice("input_type", "search_query"))
        named = await embed(handler, "red", prompt=PromptChoice("prompt_name", "query"))
        document = await embed(handler, "red", prompt=PromptChoice("task", "retrieval.passage"))
        assert handler.describe()["prompts"] == ["query", "document"]
    np.testing.assert_allclose(query.vectors[0], reference(folder, "the cat red"), atol=1e-5)
    np.testing.assert_array_equal(named.vectors, query.vectors)
    np.testing.assert_array_equal(document.vectors, plain.vectors)
    assert (query.tokens, plain.tokens, query.ignored, document.ignored) == (5, 3, (), ())


async def test_a_default_prompt_goes_before_every_text(tmp_path: Path) -> None:
    folder = save_embedding_model(tmp_path, prompts={**PROMPTS, "default_prompt_name": "query"})
    async with serving(folder) as handler:
        vectors = (await embed(handler, "red")).vectors
        with pytest.raises(InvalidRequest, match="puts its prompt 'query' before every text") as refused:
            await embed(handler, [5])
        await embed(handler, [5], prompt=PromptChoice("input_type", "document"))
    np.testing.assert_allclose(vectors[0], reference(folder, "the cat red"), atol=1e-5)
    assert refused.value.param == "input"


async def test_token_ids_cannot_have_a_prompt_unless_they_are_read_as_text(tmp_path: Path) -> None:
    folder = save_embedding_model(tmp_path / "model", prompts=PROMPTS)
    sources = {"dir:x": folder, "dir:tokens": openai_tokens(tmp_path)}
    query = PromptChoice("input_type", "query")
    handler = SentenceEncoderHandler(spec(openai_tokens="dir:tokens"), sources.__getitem__)
    async with running(handler):
        with pytest.raises(InvalidRequest, match="leave 'input_type' out") as refused:
            await embed(handler, [5], prompt=query)
        openai = await embed(handler, [0, 1], openai_ids=True, prompt=query)
    np.testing.assert_allclose(openai.vectors[0], reference(folder, "the cat the cat"), atol=1e-5)
    assert refused.value.param == "input_type"


async def test_a_prompt_counts_against_the_length_and_must_leave_room_for_the_input(tmp_path: Path) -> None:
    async with serving(save_embedding_model(tmp_path, prompts=PROMPTS)) as handler:
        query = PromptChoice("input_type", "query")
        with pytest.raises(InvalidRequest, match="Input 0 is 33 tokens long"):
            await embed(handler, "red " * 29, prompt=query)
        assert (await embed(handler, "red " * 29, prompt=query, cut_to=5)).tokens == 5
        with pytest.raises(InvalidRequest, match="puts 4 tokens around every input"):
            await embed(handler, "red", prompt=query, cut_to=4)


async def test_what_means_nothing_to_a_model_without_prompts_is_told(folder: Path) -> None:
    async with serving(folder) as handler:
        plain, query = await embed(handler, "red"), await embed(handler, "red", prompt=PromptChoice("task", "query"))
    np.testing.assert_array_equal(query.vectors, plain.vectors)
    assert (plain.ignored, query.ignored) == ((), ("task",))


async def test_equal_inputs_are_computed_once_and_counted_each_time(folder: Path) -> None:
    async with serving(folder) as handler:
        first = await embed(handler, "red", "the cat", "red")
        again = await embed(handler, "the cat", "red", [9])
        assert handler.stats().cache == CacheStats(hits=3, misses=3, entries=3, bytes=3 * (16 * 4 + 320))
    np.testing.assert_array_equal(first.vectors, again.vectors[[1, 0, 1]])
    assert (first.tokens, again.tokens) == (10, 10)


async def test_the_cache_can_be_turned_off(folder: Path) -> None:
    handler = SentenceEncoderHandler(spec(embedding_cache_bytes=0), lambda source: folder)
    async with running(handler):
        assert len((await embed(handler, "red", "red")).vectors) == 2
        assert handler.stats().cache is None


async def test_as_many_inputs_as_openai_takes_are_one_request(folder: Path) -> None:
    async with serving(folder, EMBEDDINGS.limits) as handler:
        vectors = (
            await embed(handler, *[" ".join(TEXTS[i % 5] for i in range(n % 7 + 1)) for n in range(2048)])
        ).vectors
    assert vectors.shape == (2048, 16)


async def test_a_list_longer_than_the_queue_is_taken_when_nobody_waits(folder: Path) -> None:
    async with serving(folder, Limits(max_queue_size=3, max_batch_size=2)) as handler:
        assert len((await embed(handler, *["red"] * 9)).vectors) == 9


def test_a_vector_that_is_not_finite_fails_alone(folder: Path) -> None:
    loaded = load(spec(), folder)
    assert isinstance(loaded.encoder, Bert)
    loaded.encoder._words[9] = float("nan")
    good, bad = Embedder(loaded).embed([[2, 5, 3], [2, 9, 3]])
    assert isinstance(good, np.ndarray) and np.isfinite(good).all()
    assert isinstance(bad, EngineFailed)


def test_a_pooling_that_is_not_implemented_is_refused_at_load(tmp_path: Path) -> None:
    folder = save_embedding_model(tmp_path)
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_median_tokens": true}')
    with pytest.raises(ModelLoadError, match="model tiny: .* pooling median_tokens is not supported"):
        load(spec(), folder)


def test_a_context_above_the_models_own_is_refused_at_load(folder: Path) -> None:
    with pytest.raises(ModelLoadError, match="max_model_len 65 is above the model's own 64"):
        load(spec(max_model_len=65), folder)
