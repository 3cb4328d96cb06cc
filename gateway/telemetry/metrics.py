"""What /metrics tells: its families as data, and how each is read from what the process has counted.

Labels are templates of routes, ids of configured models and words of this code, never what a client sent.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from starlette.routing import Route

from batching.stats import BatchStats, GenerationStats, HistogramStats
from batching.worker import Worker
from gateway.telemetry.logging import dropped_records
from gateway.telemetry.requests import RequestMetrics
from gateway.telemetry.upstreams import UpstreamMetrics
from handlers.registry import Registry
from handlers.stats import CacheStats, ModelStats

Number = float | HistogramStats
Labelled = Mapping[tuple[str, ...], int]


@dataclass(frozen=True, slots=True)
class Family:
    """A metric and the names of its labels. A histogram's values are HistogramStats, all others are numbers."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str


@dataclass(frozen=True, slots=True)
class Reading:
    """A family's values now, each with the values of its labels."""

    family: Family
    samples: Sequence[tuple[tuple[str, ...], Number]]


class Metrics:
    """Everything that is counted in this process. What models have counted is read when it is asked for."""

    def __init__(self, registry: Registry, routes: Sequence[Route]) -> None:
        self.requests = RequestMetrics(routes)
        self.upstreams = UpstreamMetrics()
        self._registry = registry
        self._worker = Worker("metrics")

    async def text(self, accept: str) -> tuple[bytes, str]:
        """The whole of it in the format that the header `Accept` asks for, and its content type.

        The numbers belong to the event loop; writing them down takes milliseconds, and is done in a thread.
        """
        return await self._worker.run(_write, self.read(), accept)

    def read(self) -> Sequence[Reading]:
        """Every family of FAMILIES that has a value."""
        return [
            reading for reading in (*self._of_requests(), *self._of_upstreams(), *self._of_models()) if reading.samples
        ]

    def _of_requests(self) -> Iterator[Reading]:
        durations = list(self.requests.durations())
        yield Reading(_REQUESTS, [(labels, sum(duration.counts)) for labels, duration in durations])
        yield Reading(_DURATIONS, durations)
        yield Reading(_IN_FLIGHT, [((), self.requests.in_flight)])
        yield Reading(_DROPPED_RECORDS, [((), dropped_records())])

    def _of_upstreams(self) -> Iterator[Reading]:
        counted = self.upstreams
        yield Reading(_UPSTREAM_REQUESTS, list(counted.requests.items()))
        yield Reading(_UPSTREAM_FAILURES, list(counted.failures.items()))
        yield Reading(_UPSTREAM_RETRIES, list(counted.retries.items()))
        yield Reading(_UPSTREAM_LATENCY, list(counted.latency()))
        yield Reading(_UPSTREAM_STATES, list(counted.states()))
        yield Reading(_FALLBACKS, list(counted.fallbacks.items()))

    def _of_models(self) -> Iterator[Reading]:
        models = self._registry.models
        yield Reading(_READY, [((model.spec.id, model.spec.task), model.ready) for model in models])
        warm = [(model.spec.id, stats) for model in models if (stats := model.stats()) is not None]
        for metric in _OF_MODELS:
            yield Reading(metric.family, [sample for id, stats in warm for sample in metric.samples(id, stats)])


def _write(readings: Sequence[Reading], accept: str) -> tuple[bytes, str]:
    # The library takes a twentieth of a second to import, which servers that nobody watches need not spend.
    from gateway.telemetry.exposition import write

    return write(readings, accept)


_REQUESTS = Family(
    "gateway_http_requests_total",
    "counter",
    ("method", "route", "status"),
    "Requests answered; status 499: the client left first.",
)
_DURATIONS = Family(
    "gateway_http_request_duration_seconds",
    "histogram",
    ("method", "route", "status"),
    "Seconds from a request's head to the last byte of its answer.",
)
_IN_FLIGHT = Family("gateway_http_requests_in_flight", "gauge", (), "Requests not answered yet, this one included.")
_DROPPED_RECORDS = Family(
    "gateway_log_records_dropped_total", "counter", (), "Log records lost because what reads the log was too slow."
)
_UPSTREAM_REQUESTS = Family(
    "gateway_upstream_requests_total", "counter", ("upstream", "status"), "Requests that an upstream answered."
)
_UPSTREAM_FAILURES = Family(
    "gateway_upstream_failures_total",
    "counter",
    ("upstream", "kind"),
    "Requests that got no reply from an upstream, or part of one: unreachable or timeout.",
)
_UPSTREAM_RETRIES = Family(
    "gateway_upstream_retries_total", "counter", ("upstream",), "Requests sent again after this upstream failed."
)
_UPSTREAM_LATENCY = Family(
    "gateway_upstream_first_byte_seconds",
    "histogram",
    ("upstream",),
    "Seconds from when an upstream was asked to the first byte of the body.",
)
_UPSTREAM_STATES = Family(
    "gateway_upstream_state",
    "gauge",
    ("upstream", "state"),
    "Circuit breaker: 1 for the state it is in (closed, open, half-open), 0 for the others.",
)
_FALLBACKS = Family(
    "gateway_upstream_fallbacks_total",
    "counter",
    ("target", "reason"),
    "Requests that went to target (local, upstream) because the other side could not answer.",
)
_READY = Family("gateway_model_ready", "gauge", ("model", "task"), "1 once the model is warm, 0 while it loads.")


@dataclass(frozen=True, slots=True)
class _OfModel:
    """read: the family's value for one model; None if it has none, a mapping if it has more labels than the model."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    read: Callable[[ModelStats], Number | Labelled | None]
    labels: tuple[str, ...] = ("model",)

    @property
    def family(self) -> Family:
        return Family(self.name, self.kind, self.labels, self.help)

    def samples(self, id: str, stats: ModelStats) -> Iterator[tuple[tuple[str, ...], Number]]:
        match self.read(stats):
            case None:
                return
            case Mapping() as labelled:
                yield from (((id, *labels), count) for labels, count in labelled.items())
            case value:
                yield (id,), value


def _batches(read: Callable[[BatchStats], Number | Labelled]) -> Callable[[ModelStats], Number | Labelled]:
    return lambda stats: read(stats.batches)


def _restarts(stats: ModelStats) -> Labelled:
    processes = stats.processes.items()
    return {(role, reason): count for role, process in processes for reason, count in process.restarts.items()}


def _generation(read: Callable[[GenerationStats], Number]) -> Callable[[ModelStats], Number | None]:
    return lambda stats: None if stats.batches.generation is None else read(stats.batches.generation)


def _cache(read: Callable[[CacheStats], float]) -> Callable[[ModelStats], float | None]:
    return lambda stats: None if stats.cache is None else read(stats.cache)


_OF_MODELS = (
    _OfModel("gateway_queue_jobs", "gauge", "Jobs that wait.", _batches(lambda it: it.waiting)),
    _OfModel(
        "gateway_queue_cost",
        "gauge",
        "Cost of the jobs that wait: tokens, seconds of audio or characters.",
        _batches(lambda it: it.waiting_cost),
    ),
    _OfModel(
        "gateway_queue_time_seconds",
        "histogram",
        "Seconds that jobs waited before they first ran.",
        _batches(lambda it: it.queue_time),
    ),
    _OfModel(
        "gateway_queue_refusals_total",
        "counter",
        "Requests refused because the queue was full.",
        _batches(lambda it: it.refused),
    ),
    _OfModel("gateway_running_jobs", "gauge", "Jobs in the batch that runs.", _batches(lambda it: it.running)),
    _OfModel(
        "gateway_batch_size",
        "histogram",
        "Jobs in each batch; for chat, in each step.",
        _batches(lambda it: it.batch_size),
    ),
    _OfModel(
        "gateway_batch_cost_limit",
        "gauge",
        "Cost that may run together now; below `max_batch_cost` for a while after out-of-memory.",
        _batches(lambda it: it.cost_limit),
    ),
    _OfModel(
        "gateway_out_of_memory_total",
        "counter",
        "Batches, or steps, that did not fit into the device's memory.",
        _batches(lambda it: it.out_of_memory),
    ),
    _OfModel(
        "gateway_jobs_total",
        "counter",
        "Jobs by how they ended: completed, rejected (for what they asked), cancelled (nobody waited any more), "
        "expired (past the deadline), out_of_memory, failed, stopped (with the process).",
        _batches(lambda it: {(outcome,): count for outcome, count in it.outcomes.items()}),
        labels=("model", "outcome"),
    ),
    _OfModel(
        "gateway_process_restarts_total",
        "counter",
        "How often a model's process (engine, files) was started again: crashed, or killed with a call that nobody "
        "waited for any more.",
        _restarts,
        labels=("model", "process", "reason"),
    ),
    _OfModel(
        "gateway_preemptions_total",
        "counter",
        "How often a running answer went back into the queue, for one of higher priority or after a failed step.",
        _generation(lambda it: it.preempted),
    ),
    _OfModel(
        "gateway_prompt_tokens_total",
        "counter",
        "Tokens of admitted prompts, and of embedded texts.",
        lambda stats: stats.prompt_tokens,
    ),
    _OfModel(
        "gateway_cached_prompt_tokens_total",
        "counter",
        "How many of them were in the prefix cache.",
        lambda stats: stats.cached_tokens,
    ),
    _OfModel("gateway_completion_tokens_total", "counter", "Tokens generated.", _generation(lambda it: it.tokens)),
    _OfModel(
        "gateway_time_to_first_token_seconds",
        "histogram",
        "Seconds from an answer's admission to the queue to its first token.",
        _generation(lambda it: it.time_to_first_token),
    ),
    _OfModel(
        "gateway_inter_token_latency_seconds",
        "histogram",
        "Seconds from one token of an answer to its next.",
        _generation(lambda it: it.inter_token),
    ),
    _OfModel(
        "gateway_audio_seconds_total",
        "counter",
        "Seconds of audio transcribed, or spoken.",
        lambda stats: stats.audio_seconds,
    ),
    _OfModel(
        "gateway_embeddings_cache_hits_total", "counter", "Texts whose vector was at hand.", _cache(lambda it: it.hits)
    ),
    _OfModel(
        "gateway_embeddings_cache_misses_total",
        "counter",
        "Texts whose vector had to be computed.",
        _cache(lambda it: it.misses),
    ),
    _OfModel("gateway_embeddings_cache_entries", "gauge", "Vectors kept.", _cache(lambda it: it.entries)),
    _OfModel("gateway_embeddings_cache_bytes", "gauge", "Memory of the vectors kept.", _cache(lambda it: it.bytes)),
)

FAMILIES: Sequence[Family] = (
    *(_REQUESTS, _DURATIONS, _IN_FLIGHT, _DROPPED_RECORDS, _READY),
    *(_UPSTREAM_REQUESTS, _UPSTREAM_FAILURES, _UPSTREAM_RETRIES, _UPSTREAM_LATENCY, _UPSTREAM_STATES, _FALLBACKS),
    *(metric.family for metric in _OF_MODELS),
)
