"""What becomes of a parameter: taken, ignored and reported, or refused by name."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    SUPPORTED = "supported"
    IGNORED = "ignored"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Parameter:
    """note: a short sentence; of a refused parameter, why it is refused or what to use instead.

    allowed: values of a refused parameter that ask for nothing special, and so are taken.
    extension: not OpenAI's, but known from other servers.
    """

    verdict: Verdict
    note: str
    allowed: tuple[Any, ...] = ()
    extension: bool = False

    def allows(self, value: object) -> bool:
        """Whether a refused parameter may have this value. True is not 1 here, although Python says so."""
        return any(
            value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in self.allowed
        )


Parameters = Mapping[str, Parameter]


def supported(note: str) -> Parameter:
    return Parameter(Verdict.SUPPORTED, note)


def ignored(note: str) -> Parameter:
    return Parameter(Verdict.IGNORED, note)


def refused(note: str, *allowed: object) -> Parameter:
    return Parameter(Verdict.REFUSED, note, allowed)


def extensions(parameters: Parameters) -> Parameters:
    """The same, marked as not OpenAI's."""
    return {name: replace(parameter, extension=True) for name, parameter in parameters.items()}
