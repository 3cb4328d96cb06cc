"""A grammar for tests: two tokens in turns."""

from dataclasses import dataclass, field

import torch

from handlers.chat.constraints import Constraint, ConstraintError


@dataclass(frozen=True)
class Alternating:
    """fails_at: with so many tokens it cannot say what may come. refuses_at: it has no place for the token there."""

    even: int
    odd: int
    length: int | None = None
    fails_at: int | None = None
    refuses_at: int | None = None

    def start(self) -> Constraint:
        return _Place(self)


@dataclass
class _Place:
    grammar: Alternating
    accepted: list[int] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return len(self.accepted) == self.grammar.length

    @property
    def _next(self) -> int:
        return self.grammar.odd if len(self.accepted) % 2 else self.grammar.even

    def mask_logits(self, logits: torch.Tensor) -> None:
        if len(self.accepted) == self.grammar.fails_at:
            raise ConstraintError("too costly")
        kept = logits[self._next].clone()
        logits.fill_(float("-inf"))
        logits[self._next] = kept

    def accept(self, token: int) -> None:
        if token != self._next or len(self.accepted) == self.grammar.refuses_at:
            raise ConstraintError("no place for it")
        self.accepted.append(token)
