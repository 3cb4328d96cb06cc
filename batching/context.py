"""Which requests the running code serves."""

from contextvars import ContextVar

current_requests: ContextVar[tuple[str, ...]] = ContextVar("current_requests", default=())
"""Ids of the requests that the running batch serves; read by the log filter in the worker thread or process."""
