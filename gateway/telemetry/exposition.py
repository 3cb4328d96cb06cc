"""Readings as text, by prometheus_client, with its metrics of the process and the interpreter."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, GCCollector, Metric, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from batching.stats import HistogramStats
from gateway.telemetry.metrics import Family, Number, Reading

_OPENMETRICS = "application/openmetrics-text"


def write(readings: Sequence[Reading], accept: str) -> tuple[bytes, str]:
    """The readings and their content type: OpenMetrics for who accepts it, else Prometheus' own format."""
    registry = CollectorRegistry()
    registry.register(_Readings(readings))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    # The library's own negotiation fails on a version that is no number, and repeats one that it does not write.
    if _OPENMETRICS in {media_range.partition(";")[0].strip().lower() for media_range in accept.split(",")}:
        text: bytes = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]
        return text, openmetrics.CONTENT_TYPE_LATEST
    return generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4


class _Readings(Collector):
    def __init__(self, readings: Sequence[Reading]) -> None:
        self._readings = readings

    def describe(self) -> Iterable[Metric]:
        """Asked for when this is registered, to find names that are taken."""
        return (_empty(reading.family) for reading in self._readings)

    def collect(self) -> Iterator[Metric]:
        for reading in self._readings:
            metric = _empty(reading.family)
            for labels, value in reading.samples:
                _add(metric, labels, value)
            yield metric


def _empty(family: Family) -> Metric:
    match family.kind:
        case "counter":
            return CounterMetricFamily(family.name, family.help, labels=family.labels)
        case "gauge":
            return GaugeMetricFamily(family.name, family.help, labels=family.labels)
        case "histogram":
            return HistogramMetricFamily(family.name, family.help, labels=family.labels)


def _add(metric: Metric, labels: Sequence[str], value: Number) -> None:
    match metric, value:
        case HistogramMetricFamily(), HistogramStats():
            metric.add_metric(labels, _buckets(value), value.sum)
        case CounterMetricFamily() | GaugeMetricFamily(), int() | float():
            metric.add_metric(labels, value)
        case _:
            raise TypeError(f"{metric.name} cannot have the value {value!r}")


def _buckets(stats: HistogramStats) -> list[tuple[str, float]]:
    """Each with its upper bound, as Prometheus writes it, and the number of values up to that."""
    bounds = [*map(floatToGoString, stats.bounds), "+Inf"]
    return list(zip(bounds, accumulate(stats.counts), strict=True))
