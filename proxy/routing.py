"""Where a request goes: to a model here or to an upstream, why, and where next if that does not work out. Pure.

`plan` decides before anything is tried; `turns_to_upstream` when a model here has refused.
"""

from dataclasses import dataclass
from enum import StrEnum


class Mode(StrEnum):
    """When upstreams are asked.

    off: never. fallback: for what is not served here, and for what is but cannot answer. overflow: also when the queue
    is full, or long. first: before the models here, which answer when it fails. only: always.
    """

    OFF = "off"
    FALLBACK = "fallback"
    OVERFLOW = "overflow"
    FIRST = "first"
    ONLY = "only"


class Target(StrEnum):
    LOCAL = "local"
    UPSTREAM = "upstream"


class Reason(StrEnum):
    """What `x-served-because` says."""

    SERVED_HERE = "served-here"
    MODE = "mode"
    ROUTE_HEADER = "route-header"
    LOCAL_ONLY = "local-only"
    UNKNOWN_HERE = "unknown-here"
    LOADING = "loading"
    FAILING = "failing"
    OUT_OF_MEMORY = "out-of-memory"
    QUEUE_FULL = "queue-full"
    LONG_WAIT = "long-wait"
    BREAKER_OPEN = "breaker-open"
    UPSTREAM_FAILED = "upstream-failed"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a request before it is tried.

    mode: of its model. served_here: a model of that name is served here; ready: and is warm.
    predicted_wait: seconds that it would wait in the queue here; longest_wait: from how many on that is too long.
    served_upstream: an upstream takes this model; available: and its breaker lets requests through.
    wish: the header `x-gateway-route`; local_only: the header `x-local-only`.
    """

    mode: Mode
    served_here: bool
    ready: bool = True
    predicted_wait: float = 0.0
    longest_wait: float = float("inf")
    served_upstream: bool = True
    available: bool = True
    wish: Target | None = None
    local_only: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """target: who is asked first, and why. otherwise: whether the other side may answer in its place."""

    target: Target
    reason: Reason
    otherwise: bool = False


def plan(facts: Facts) -> Plan:
    """Where a request goes first. What nobody serves stays here, to be told so."""
    if facts.local_only:
        return Plan(Target.LOCAL, Reason.LOCAL_ONLY)
    if facts.wish is not None:
        return Plan(facts.wish, Reason.ROUTE_HEADER)
    if facts.mode is Mode.ONLY:
        return Plan(Target.UPSTREAM, Reason.MODE)
    if facts.mode is Mode.OFF or not facts.served_upstream:
        return Plan(Target.LOCAL, Reason.SERVED_HERE)
    if not facts.served_here:
        return Plan(Target.UPSTREAM, Reason.UNKNOWN_HERE)
    if facts.mode is Mode.FIRST:
        return _first(facts)
    return _here_if_it_can(facts)


def _first(facts: Facts) -> Plan:
    if facts.available:
        return Plan(Target.UPSTREAM, Reason.MODE, otherwise=True)
    return Plan(Target.LOCAL, Reason.BREAKER_OPEN)


def _here_if_it_can(facts: Facts) -> Plan:
    if not facts.available:
        return Plan(Target.LOCAL, Reason.SERVED_HERE)
    if not facts.ready:
        return Plan(Target.UPSTREAM, Reason.LOADING, otherwise=True)
    if facts.mode is Mode.OVERFLOW and facts.predicted_wait > facts.longest_wait:
        return Plan(Target.UPSTREAM, Reason.LONG_WAIT, otherwise=True)
    return Plan(Target.LOCAL, Reason.SERVED_HERE, otherwise=True)


_ONLY_IN_OVERFLOW = frozenset({Reason.QUEUE_FULL, Reason.LONG_WAIT})


def turns_to_upstream(mode: Mode, refusal: Reason) -> bool:
    """Whether a request that a model here refused for that reason goes on to an upstream."""
    return mode is Mode.OVERFLOW or (mode is Mode.FALLBACK and refusal not in _ONLY_IN_OVERFLOW)
