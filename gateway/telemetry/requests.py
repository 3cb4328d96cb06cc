"""How many requests there were, and how long they took. Whatever clients send, the number of labels is bounded."""

from collections.abc import Iterator, Sequence
from http import HTTPStatus

from starlette.routing import Route

from batching.stats import SECONDS, Histogram, HistogramStats

OTHER = "other"

Labels = tuple[str, str, str]
"""method, route, status"""

_STATUSES = {status: str(status) for status in (*map(int, HTTPStatus), 499)}


class RequestMetrics:
    """Counted on the event loop, at the price of a few look-ups a request."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self.in_flight = 0
        self._routes = RouteLabels(routes)
        self._durations: dict[Labels, Histogram] = {}

    def begin(self) -> None:
        self.in_flight += 1

    def end(self, method: str, path: str, status: int, seconds: float) -> None:
        """Call once for every `begin`."""
        self.in_flight -= 1
        labels = (*self._routes.of(method, path), _STATUSES.get(status, OTHER))
        duration = self._durations.get(labels)
        if duration is None:
            duration = self._durations[labels] = Histogram(SECONDS)
        duration.observe(seconds)

    def durations(self) -> Iterator[tuple[Labels, HistogramStats]]:
        for labels, duration in self._durations.items():
            yield labels, duration.stats()


class RouteLabels:
    """Names the route that the router would take, also for requests that are refused before they reach it."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._routes = routes
        self._fixed = {
            (method, route.path): (method, route.path_format)
            for route in routes
            if not route.param_convertors
            for method in route.methods or ()
        }

    def of(self, method: str, path: str) -> tuple[str, str]:
        """The method, if a route takes it, and the route's template: never the path itself."""
        if known := self._fixed.get((method, path)):
            return known
        matching = [route for route in self._routes if route.path_regex.match(path)]
        for route in matching:
            if method in (route.methods or ()):
                return method, route.path_format
        return OTHER, matching[0].path_format if matching else OTHER
