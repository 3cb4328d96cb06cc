"""What a handler says no with. Only gateway/errors.py knows which HTTP status each becomes."""

import errno

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Of an OSError: the disk, the user's share of it, and the largest file that the process may write."""


class InvalidRequest(Exception):
    """The caller's mistake: `message` says what is wrong and the way out, `param` names the field at fault.

    `code` is one of OpenAI's machine-readable codes where one exists (`context_length_exceeded`, `invalid_value`,
    `unsupported_parameter`, …).
    """

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class UnsupportedMedia(InvalidRequest):
    """The bytes are not of a kind that is taken at all (415)."""


class TooLarge(InvalidRequest):
    """The input is over a size or duration limit (413)."""


class StorageFull(Exception):
    """There is no room on disk for an upload."""


class ModelNotFound(Exception):
    """No model and no alias has this name."""

    def __init__(self, model: str) -> None:
        super().__init__(f"no model named {model!r}")
        self.model = model


class ModelLoading(Exception):
    """The model is known but not warm yet; come back in `retry_after` seconds."""

    def __init__(self, model: str, retry_after: float = 2.0) -> None:
        super().__init__(f"model {model!r} is still loading")
        self.model = model
        self.retry_after = retry_after


class SourceError(Exception):
    """Weights cannot be had. The text is one line: which source, why, and what to do about it."""


class ModelLoadError(Exception):
    """A model cannot be loaded. The text is one line: which model, why, and what to do about it."""
