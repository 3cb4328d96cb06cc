"""How much of the waiting prompts is computed beside the running answers. Pure: seconds come in as numbers."""

from collections.abc import Sequence

_MOST = 512
_LEAST = 16
_SLOWDOWN = 1.7
_SMOOTHING = 0.2
_OLDEST_SHARE = 2


class PrefillBudget:
    """Prompt tokens a step may take (chunked prefill: Agrawal et al., Sarathi-Serve, OSDI 2024).

    While nobody generates, as many as multiply well. Otherwise so many that a step becomes `_SLOWDOWN` times longer
    than without them, by what steps have taken so far: a running answer slows down, but never stalls.
    """

    def __init__(self) -> None:
        self._decode_seconds: float | None = None
        self._token_seconds: float | None = None

    def tokens(self, decoding: int) -> int:
        """decoding: rows that generate."""
        if not decoding:
            return _MOST
        if self._decode_seconds is None or self._token_seconds is None:
            return _LEAST
        return max(_LEAST, min(_MOST, int(_SLOWDOWN * self._decode_seconds / self._token_seconds)))

    def record(self, decoding: int, prefilled: int, seconds: float) -> None:
        """A step of `decoding` rows and `prefilled` prompt tokens took so long."""
        if not prefilled:
            self._decode_seconds = _smoothed(self._decode_seconds, seconds)
        elif not decoding:
            self._token_seconds = _smoothed(self._token_seconds, seconds / prefilled)
        elif self._decode_seconds is not None and seconds > self._decode_seconds:
            self._token_seconds = _smoothed(self._token_seconds, (seconds - self._decode_seconds) / prefilled)


def allot(remaining: Sequence[int], budget: int) -> list[int]:
    """Share `budget` tokens among prompts with so many left to compute, oldest first; one number each.

    The shortest goes first, so that most answers begin soonest; the oldest has half for sure, so that it begins at
    all.
    """
    shares = [0] * len(remaining)
    if not remaining:
        return shares
    shares[0] = min(remaining[0], -(-budget // _OLDEST_SHARE))
    left = budget - shares[0]
    for i in sorted(range(len(remaining)), key=remaining.__getitem__):
        more = min(remaining[i] - shares[i], left)
        shares[i] += more
        left -= more
    return shares


def _smoothed(known: float | None, new: float) -> float:
    return new if known is None else known + _SMOOTHING * (new - known)
