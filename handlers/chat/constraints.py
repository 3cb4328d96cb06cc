"""What the engine knows of a grammar: which tokens may come next."""

from typing import Protocol

import torch


class ConstraintError(Exception):
    """The answer cannot go on: its grammar forbids the token, or has become too costly to follow."""


class Constraint(Protocol):
    """How far one answer has come in its grammar."""

    @property
    def complete(self) -> bool:
        """Whether nothing but the end of the answer is allowed any more."""

    def mask_logits(self, logits: torch.Tensor) -> None:
        """Set every token that may not come next to minus infinity, in place.

        logits: float, [vocabulary of the model], of one row. End-of-sequence tokens stay where the answer may end.
        Raises ConstraintError.
        """

    def accept(self, token: int) -> None:
        """Go on by the token that was drawn. Raises ConstraintError if the grammar has no place for it."""


class Grammar(Protocol):
    """A compiled grammar: unchanging, and shared by all the answers that follow it."""

    def start(self) -> Constraint:
        """A fresh start; a preempted answer is taken up again by accepting what it had generated."""
