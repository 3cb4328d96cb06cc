"""Paths that some middleware treats apart, compared with `scope["path"]`: the one that the router goes by, too.

Never with a URL built from the Host header: what a client writes there can make such a URL's path a different one.
"""

HEALTH = frozenset({"/healthz", "/readyz"})
METRICS = "/metrics"
MACHINES = HEALTH | {METRICS}
"""Asked for at intervals by what watches the server: no limit of rate, and no line in the log."""

AUDIO_UPLOADS = frozenset({"/v1/audio/transcriptions", "/v1/audio/translations"})
