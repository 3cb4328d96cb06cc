"""OpenAI's voice names and the local voices that speak for them."""

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

DEFAULT = "heart"

# By gender, accent and age as OpenAI's voices sound: heart and kore are American women, emma a British one,
# fenrir an American man, fable a British one.
PREFERRED: Mapping[str, str] = MappingProxyType(
    {
        "alloy": "heart",
        "ash": "fenrir",
        "ballad": "fable",
        "cedar": "fenrir",
        "coral": "kore",
        "echo": "fenrir",
        "fable": "fable",
        "marin": "heart",
        "nova": "heart",
        "onyx": "fenrir",
        "sage": "emma",
        "shimmer": "kore",
        "verse": "fable",
    }
)


def voices_in_force(local: Collection[str]) -> Mapping[str, str]:
    """Every name that may be asked for, and the local voice it gets: itself, the preferred one, or DEFAULT.

    local: the voices whose files are here; DEFAULT always is.
    """
    mapped = {name: voice if voice in local else DEFAULT for name, voice in PREFERRED.items()}
    return mapped | {name: name for name in local}


def shared_out(speakers: Sequence[str]) -> dict[str, str]:
    """The same for speakers of whom nothing is known: OpenAI's names are dealt out to them in turn.

    speakers: at least one.
    """
    dealt = {name: speakers[i % len(speakers)] for i, name in enumerate(PREFERRED)}
    return dealt | {name: name for name in speakers}
