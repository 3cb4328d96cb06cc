"""All upstreams together: which one is asked, whether it is asked again, and what is noted of it."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from proxy.body import Content
from proxy.breaker import BreakerState
from proxy.errors import NotServed, UpstreamDeclined, UpstreamError, UpstreamSpared, UpstreamTimeout
from proxy.headers import RawHeaders
from proxy.retry import MAX_ATTEMPTS, TRANSIENT, RetryBudget, delay_before, is_repeatable, retry_after
from proxy.rotation import Rotation
from proxy.upstream import Upstream, UpstreamReply

logger = logging.getLogger(__name__)

_BROKEN = 500  # statuses from here on count against an upstream
_UNAUTHORIZED = 401


class Observer(Protocol):
    """Counts. upstream: a name of the settings."""

    def answered(self, upstream: str, status: int, seconds: float) -> None:
        """seconds: from when it was asked to the first byte of the body."""

    def failed(self, upstream: str, kind: str) -> None:
        """kind: unreachable or timeout."""

    def retried(self, upstream: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A client's request on its way. model: as the client calls it. content: headers and body for an upstream that
    calls it by the given name (None: as the client does); asked for once an attempt. replayable: more than once.
    """

    method: str
    path: str
    model: str | None
    content: Callable[[str | None], tuple[RawHeaders, Content]]
    replayable: bool = True


class Upstreams:
    """Asks by weight those that serve a model and have not failed too often; close it with `aclose`.

    chance, wall: where randomness, from 0 to 1, and unix seconds come from.
    """

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        observer: Observer,
        *,
        chance: Callable[[], float] = random.random,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.all = upstreams
        self._observer = observer
        self._chance = chance
        self._wall = wall
        self._budget = RetryBudget()
        self._rotation = Rotation([(upstream, upstream.spec.weight) for upstream in upstreams])

    async def aclose(self) -> None:
        async with AsyncExitStack() as closing:
            for upstream in self.all:
                closing.push_async_callback(upstream.aclose)

    def serves(self, model: str | None) -> bool:
        return any(upstream.spec.serves(model) for upstream in self.all)

    def available(self, model: str | None) -> bool:
        """Whether one that serves the model would be asked now."""
        now = _now()
        return any(upstream.spec.serves(model) and upstream.breaker.would_admit(now) for upstream in self.all)

    def states(self) -> Mapping[str, BreakerState]:
        """Of every upstream's circuit breaker, by name."""
        now = _now()
        return {upstream.spec.name: upstream.breaker.state(now) for upstream in self.all}

    def models(self) -> Mapping[str, str]:
        """Every model that is named in the settings, with the upstream that serves it, the first of several."""
        return {
            model: upstream.spec.name
            for upstream in reversed(self.all)
            for model in reversed([*(upstream.spec.models or ())])
        }

    @asynccontextmanager
    async def send(self, outgoing: Outgoing, decline: frozenset[int] = frozenset()) -> AsyncIterator[UpstreamReply]:
        """The first reply that is worth passing on; its body has begun, and is closed on leaving the context.

        decline: statuses for which somebody else can answer.
        Raises UnsafePath, UpstreamError, and what reading the client's body raises.
        """
        self._budget.earn()
        tried: list[Upstream] = []
        while True:
            async with AsyncExitStack() as exchange:
                tried.append(self._choose(outgoing.model, tried))
                try:
                    reply = await exchange.enter_async_context(self._ask(tried[-1], outgoing))
                except UpstreamError as exc:
                    may = _may_be_repeated(outgoing, exc)
                    delay = self._delay(outgoing, tried, None, unsent=not exc.sent) if may else None
                    if delay is None:
                        raise
                else:
                    delay = self._delay_after(reply, outgoing, tried)
                    if delay is None and reply.status in decline:
                        raise UpstreamDeclined(reply.status)
                    if delay is None:
                        yield reply
                        return
            self._observer.retried(tried[-1].spec.name)
            await asyncio.sleep(delay)

    async def watch(self) -> None:
        """Asks those that have a health check whether they are well, until it is cancelled."""
        async with asyncio.TaskGroup() as checks:
            for upstream in self.all:
                if upstream.spec.health_path is not None:
                    checks.create_task(self._check_health(upstream, upstream.spec.health_path))

    async def _check_health(self, upstream: Upstream, path: str) -> None:
        while True:
            await asyncio.sleep(upstream.spec.health_interval)
            try:
                async with asyncio.timeout(upstream.spec.health_interval):
                    async with upstream.send("GET", f"/v1{path}", []) as reply:
                        well = reply.status < _BROKEN
            except (UpstreamError, TimeoutError):
                well = False
            if well:
                upstream.breaker.succeeded()
            else:
                upstream.breaker.failed(_now())

    def _choose(self, model: str | None, tried: Sequence[Upstream]) -> Upstream:
        """Rather one that has not been tried. Raises UpstreamSpared or NotServed where none may be asked."""
        now = _now()
        serving = [upstream for upstream in self.all if upstream.spec.serves(model)]
        able = [upstream for upstream in serving if upstream.breaker.would_admit(now)]
        chosen = self._rotation.next([upstream for upstream in able if upstream not in tried] or able)
        if chosen is None and serving:
            raise UpstreamSpared(min(upstream.breaker.retry_in(now) for upstream in serving))
        if chosen is None:
            raise NotServed(model or "")
        chosen.breaker.admit(now)
        return chosen

    @asynccontextmanager
    async def _ask(self, upstream: Upstream, outgoing: Outgoing) -> AsyncIterator[UpstreamReply]:
        """One attempt. What becomes of it is noted, up to the end of the reply."""
        started, breaker, settled = _now(), upstream.breaker, False
        there = None if outgoing.model is None else upstream.spec.name_there(outgoing.model)
        try:
            headers, body = outgoing.content(None if there == outgoing.model else there)
            async with upstream.send(outgoing.method, outgoing.path, headers, body, self._budget) as reply:
                await reply.chunks.peek()
                settled = self._note(upstream, reply.status, _now() - started)
                yield reply
                if reply.chunks.failure is not None:  # which the relay has told the client in its own way
                    self._note_failure(upstream, reply.chunks.failure)
                elif not settled:
                    breaker.succeeded()
                settled = True
        except UpstreamDeclined:  # by us: it has answered, and that is noted
            if not settled:
                settled = True
                breaker.succeeded()
            raise
        except UpstreamError as exc:
            settled = True
            self._note_failure(upstream, exc)
            raise
        finally:
            if not settled:
                breaker.left()

    def _note(self, upstream: Upstream, status: int, seconds: float) -> bool:
        """Whether the status says already what the breaker is told of the whole exchange."""
        self._observer.answered(upstream.spec.name, status, seconds)
        if status >= _BROKEN:
            upstream.breaker.failed(_now())
        else:
            upstream.breaker.began()
        if status == _UNAUTHORIZED and upstream.spec.api_key is not None and not upstream.spec.forward_client_key:
            logger.error("the upstream %s does not accept the key that the settings give for it", upstream.spec.name)
        return status >= _BROKEN

    def _note_failure(self, upstream: Upstream, exc: UpstreamError) -> None:
        upstream.breaker.failed(_now())
        self._observer.failed(upstream.spec.name, "timeout" if isinstance(exc, UpstreamTimeout) else "unreachable")

    def _delay_after(self, reply: UpstreamReply, outgoing: Outgoing, tried: Sequence[Upstream]) -> float | None:
        if reply.status not in TRANSIENT or not outgoing.replayable:
            return None
        if not is_repeatable(outgoing.method, outgoing.path):
            return None
        asked = next((value for name, value in reply.headers if name == b"retry-after"), b"")
        return self._delay(outgoing, tried, retry_after(asked.decode("latin-1"), self._wall()))

    def _delay(
        self, outgoing: Outgoing, tried: Sequence[Upstream], asked: float | None, *, unsent: bool = False
    ) -> float | None:
        """Seconds to the next attempt; None if this was the last.

        asked: what the upstream wants to be left alone for, which is no matter to another. unsent: no server has got
        the request; so it may go to another at once, at the cost of nobody's budget.
        """
        if len(tried) >= MAX_ATTEMPTS or not self.available(outgoing.model):
            return None
        now = _now()
        others = any(
            it.spec.serves(outgoing.model) and it.breaker.would_admit(now) for it in self.all if it not in tried
        )
        if unsent and others:
            return 0.0
        delay = delay_before(len(tried) + 1, None if others else asked, self._chance())
        return delay if delay is not None and self._budget.spend() else None


def _may_be_repeated(outgoing: Outgoing, exc: UpstreamError) -> bool:
    """A timeout has cost enough time already."""
    safe = not exc.sent or is_repeatable(outgoing.method, outgoing.path)
    return safe and outgoing.replayable and not isinstance(exc, UpstreamTimeout)


def _now() -> float:
    return asyncio.get_running_loop().time()
