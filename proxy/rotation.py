"""Which of several upstreams is next. Pure."""

from collections.abc import Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Rotation(Generic[T]):
    """Smooth weighted round robin, as nginx has it: each is chosen as often in a round as it weighs, spread out.

    members: with their weights, whole numbers of at least 1.
    """

    def __init__(self, members: Sequence[tuple[T, int]]) -> None:
        self._members = [member for member, _ in members]
        self._weights = [weight for _, weight in members]
        self._credit = [0] * len(members)

    def next(self, among: Sequence[T]) -> T | None:
        """One of `among`; None if none of them is a member. Who is left out now gets no more later for it."""
        able = [index for index, member in enumerate(self._members) if member in among]
        if not able:
            return None
        for index in able:
            self._credit[index] += self._weights[index]
        chosen = max(able, key=lambda index: self._credit[index])
        self._credit[chosen] -= sum(self._weights[index] for index in able)
        return self._members[chosen]
