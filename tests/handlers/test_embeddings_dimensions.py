"""Which lengths a vector may be cut to, and the cut itself."""

from typing import Any

import numpy as np
import pytest

from handlers.embeddings.dimensions import Dimensions, read_dimensions, shaped
from handlers.errors import InvalidRequest
from handlers.spec import ModelSpec, Task


def read(config: dict[str, Any], told: tuple[int, ...] | None = None) -> Dimensions:
    return read_dimensions(ModelSpec("tiny", Task.EMBEDDINGS, "dir:x", matryoshka_dimensions=told), config, 16)


@pytest.mark.parametrize(
    ("config", "told", "shorter"),
    [
        ({}, None, []),
        ({"is_matryoshka": False}, None, []),
        ({"matryoshka_dimensions": [4, 16, 8]}, None, [8, 4]),
        ({"matryoshka_dimensions": [4], "is_matryoshka": True}, None, [4]),
        ({"is_matryoshka": True}, None, list(range(15, 0, -1))),
        ({}, (8, 2), [8, 2]),
        ({"is_matryoshka": True}, (8,), [8]),
        ({"is_matryoshka": True}, (), []),
    ],
)
def test_the_models_config_tells_it_unless_the_model_file_does(
    config: dict[str, Any], told: tuple[int, ...] | None, shorter: list[int]
) -> None:
    assert list(read(config, told).shorter) == shorter


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({}, (17,)),
        ({"matryoshka_dimensions": [0]}, None),
        ({"matryoshka_dimensions": ["8"]}, None),
        ({"matryoshka_dimensions": 8}, None),
    ],
)
def test_what_no_vector_can_be_cut_to_is_refused_at_load(config: dict[str, Any], told: tuple[int, ...] | None) -> None:
    with pytest.raises(ValueError, match="matryoshka_dimensions"):
        read(config, told)


@pytest.mark.parametrize(
    ("config", "wanted", "message"),
    [
        ({}, 8, "was not trained for shortened vectors: leave `dimensions` out, or ask for its 16"),
        ({"matryoshka_dimensions": [8, 4]}, 5, "was trained for vectors of 16, 8 or 4 numbers, not 5"),
        ({"matryoshka_dimensions": [8, 4]}, 17, "was trained for vectors of 16, 8 or 4 numbers, not 17"),
        ({"is_matryoshka": True}, 17, "was trained for vectors of 1 to 16 numbers, not 17"),
    ],
)
def test_other_lengths_are_refused_with_those_there_are(config: dict[str, Any], wanted: int, message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read(config).check("tiny", wanted)
    assert message in refused.value.message
    assert refused.value.param == "dimensions"


def test_lengths_that_are_offered_and_the_models_own_are_taken() -> None:
    dimensions = read({"matryoshka_dimensions": [8, 4]})
    assert [dimensions.check("tiny", wanted) for wanted in (None, 16, 8, 4)] == [16, 16, 8, 4]
    assert read({"is_matryoshka": True}).check("tiny", 1) == 1


def test_models_tell_their_lengths() -> None:
    assert read({"matryoshka_dimensions": [4, 8]}).described == [8, 4]
    assert read({"is_matryoshka": True}).described == "1 to 16"


def test_vectors_are_cut_first_and_then_brought_to_length_1() -> None:
    vectors = np.array([[3, 4, 12], [0, 0, 5]], np.float32)
    np.testing.assert_allclose(shaped(vectors, 2, normalize=True), [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)
    np.testing.assert_array_equal(shaped(vectors, 2, normalize=False), [[3, 4], [0, 0]])
    np.testing.assert_allclose(np.linalg.norm(shaped(vectors, 3, normalize=True), axis=1), 1, rtol=1e-6)
    assert shaped(vectors, 2, normalize=True).dtype == np.float32
