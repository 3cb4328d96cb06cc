"""What can go wrong on the way to the upstream. Nothing here knows HTTP statuses; the edge maps each word to one.

ProxyError
├── UnsafePath                 the client's path is not one that is passed on
├── NoRoom                     no room on disk for an upload
├── NotServed                  no upstream takes this model
└── UpstreamError
    ├── UpstreamUnreachable    no connection, no HTTP, a redirect, or a reply cut short
    │   └── UpstreamSpared     its circuit breaker is open
    ├── UpstreamDeclined       a status that is not passed on, as somebody else can answer
    └── UpstreamTimeout        a connection, a free slot in the pool, or the next bytes did not come in time

The texts are fixed and fit to be shown to a client; what happened underneath is `__cause__` and is for the log only.
An error status that the upstream answers with is a reply, not an exception.
"""


class ProxyError(Exception):
    """Base of every reason why a request could not be relayed."""


class UnsafePath(ProxyError):
    """Joined to the upstream's address, the path could leave what lies below it."""


class NoRoom(ProxyError):
    """What must be kept of an upload does not fit on the disk."""


class NotServed(ProxyError):
    """No upstream takes requests for this model."""

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.model = model


class UpstreamError(ProxyError):
    """The upstream gave no reply, or only part of one. sent: whether it may have got the request."""

    def __init__(self, text: str, *, sent: bool = True) -> None:
        super().__init__(text)
        self.sent = sent


class UpstreamUnreachable(UpstreamError):
    """The upstream cannot be reached, or does not answer as an HTTP server should."""


class UpstreamSpared(UpstreamUnreachable):
    """It failed too often in the last moments to be asked again. retry_after: seconds until it is."""

    def __init__(self, retry_after: float) -> None:
        super().__init__("the upstream has failed too often and is left alone for a moment", sent=False)
        self.retry_after = retry_after


class UpstreamDeclined(UpstreamError):
    """It answered with a status for which another answer is at hand."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the upstream answered with status {status}")
        self.status = status


class UpstreamTimeout(UpstreamError):
    """The upstream kept us waiting for longer than the settings allow."""
