"""Which request the code at hand runs for."""

from contextvars import ContextVar

request_id_var: ContextVar[str] = ContextVar("request_id", default="-")
"""Id of the request that is being served; "-" outside of one. In the thread of a batch see batching.worker."""
