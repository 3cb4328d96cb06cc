"""What an embedding request is, apart from any wire format."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a gateway that only relays never needs it
    import numpy as np
    from numpy.typing import NDArray


TokenIds = Sequence[int]

WHOLE = -1
"""Cut to as many tokens as the model takes."""


@dataclass(frozen=True, slots=True)
class PromptChoice:
    """The caller's word on what goes before each text. param: `prompt_name`, `input_type` or `task`."""

    param: str
    value: str


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """inputs: texts or lists of token ids; one vector comes back for each, in order.

    dimensions: vectors are cut to so many numbers. normalize: to length 1, or not; None leaves it to the model.
    openai_ids: token ids are of OpenAI's tokenizer, not of the model's own.
    cut_to: longer inputs are cut to so many tokens, special ones included; None refuses them.
    cache_salt: cached vectors are shared only under the same.
    """

    inputs: Sequence[str | TokenIds]
    dimensions: int | None = None
    openai_ids: bool = False
    prompt: PromptChoice | None = None
    cut_to: int | None = None
    normalize: bool | None = None
    cache_salt: str = ""


@dataclass(frozen=True, slots=True)
class Embeddings:
    """vectors: float32, [inputs, dimensions]. tokens: real tokens of all inputs, special tokens included.

    ignored: the parameters that mean nothing to this model.
    """

    vectors: "NDArray[np.float32]"
    tokens: int
    ignored: tuple[str, ...] = ()
