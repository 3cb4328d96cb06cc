"""Log lines: their two forms, the request's id in them, nothing secret, and a sink that is stuck."""

import gc
import io
import logging
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batching.context import current_requests
from gateway.telemetry.background import BackgroundHandler
from gateway.telemetry.context import request_id_var
from gateway.telemetry.formats import JsonFormatter, Redactor, TextFormatter
from gateway.telemetry.logging import OURS, configure


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """Gives the loggers back as they were."""
    loggers = [logging.getLogger(), *map(logging.getLogger, OURS)]
    before = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
    recorded = logging._srcfile, logging.logThreads, logging.logProcesses, logging.logMultiprocessing
    yield
    logging._srcfile, logging.logThreads, logging.logProcesses, logging.logMultiprocessing = recorded
    logging.captureWarnings(False)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, BackgroundHandler):
            handler.close()
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


class StuckStream(io.StringIO):
    """Lets nothing through until `gate` is open. reached: someone has tried."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.reached = threading.Event()

    def write(self, text: str) -> int:
        self.reached.set()
        self.gate.wait()
        return super().write(text)


def written(stream: io.StringIO) -> list[str]:
    """The lines so far, once everything logged has been written."""
    for handler in logging.getLogger().handlers:
        handler.flush()
    return stream.getvalue().splitlines()


def test_a_text_line_has_time_level_logger_request_and_message() -> None:
    configure("info", "text", stream=(stream := io.StringIO()))

    token = request_id_var.set("req_1")
    logging.getLogger("gateway.access").warning("%s took %d ms", "it", 7)
    request_id_var.reset(token)

    [line] = written(stream)
    date, _, rest = line.split(" ", 2)
    assert len(date) == len("2026-01-01")
    assert rest == "WARNING gateway.access [req_1] it took 7 ms"


def test_a_json_line_has_the_same_and_the_extra_fields() -> None:
    configure("info", "json", stream=(stream := io.StringIO()))

    logging.getLogger("gateway.access").info(
        "GET %s", "/", extra={"status": 200, "ms": 0.5, "tags": ["a"], "none": None}
    )

    [line] = written(stream)
    fields = orjson.loads(line)
    assert fields.pop("ts").endswith("+00:00")
    assert fields == {
        "level": "info",
        "logger": "gateway.access",
        "message": "GET /",
        "request_id": "-",
        "status": 200,
        "ms": 0.5,
        "tags": "['a']",
        "none": None,
    }


def test_in_the_thread_of_a_batch_the_ids_of_all_its_requests_are_logged() -> None:
    configure("info", "json", stream=(stream := io.StringIO()))

    token = current_requests.set(("req_1", "req_2"))
    logging.getLogger("handlers.chat").info("step")
    current_requests.reset(token)

    assert orjson.loads(written(stream)[0])["request_id"] == "req_1,req_2"


@pytest.mark.parametrize("format", ["text", "json"])
def test_secrets_are_hidden_wherever_they_turn_up(format: str) -> None:
    configure("info", format, secrets=["key-1", "key-12"], stream=(stream := io.StringIO()))  # type: ignore[arg-type]
    logger = logging.getLogger("proxy")

    logger.info("sent key-12 and %s", "key-1", extra={"headers": {"authorization": "Bearer sk-other"}, "key": "key-1"})
    logger.info("authorization: bearer sk-other, done")
    try:
        raise ValueError("key-1")
    except ValueError:
        logger.exception("failed")

    text = "\n".join(written(stream))
    assert "key-1" not in text and "sk-other" not in text
    assert "sent *** and ***" in text
    assert "authorization: bearer ***, done" in text
    assert "ValueError: ***" in text


def test_no_secrets_hide_nothing() -> None:
    assert Redactor([""])("as it is") == "as it is"


def test_a_message_cannot_begin_a_line_of_its_own_in_text() -> None:
    configure("info", "text", stream=(stream := io.StringIO()))

    logging.getLogger("gateway").info("model %s", "x\n2026-01-01 CRITICAL all is lost\x1b[31m")

    [line] = written(stream)
    assert line.endswith(r"model x\n2026-01-01 CRITICAL all is lost\x1b[31m")


@pytest.mark.parametrize("format", ["text", "json"])
def test_a_traceback_is_logged(format: str) -> None:
    configure("info", format, stream=(stream := io.StringIO()))  # type: ignore[arg-type]

    try:
        raise ValueError("the cause")
    except ValueError:
        logging.getLogger("gateway").exception("failed")

    lines = written(stream)
    text = orjson.loads(lines[0])["exception"] if format == "json" else "\n".join(lines[1:])
    assert text.startswith("Traceback (most recent call last):")
    assert text.endswith("ValueError: the cause")


def test_a_traceback_that_waits_to_be_written_keeps_no_objects_alive() -> None:
    class Tensor:
        pass

    handler = BackgroundHandler(stream := StuckStream())
    alive = weakref.WeakSet([tensor := Tensor()])
    try:
        raise ValueError
    except ValueError:
        record = logging.makeLogRecord({"msg": "%s", "args": (tensor,), "exc_info": sys.exc_info()})

    handler.handle(record)
    assert record.exc_info is not None and record.exc_text is None, "other handlers see the record as it was"
    del record, tensor
    gc.collect()
    assert not alive
    stream.gate.set()
    handler.close()
    assert "ValueError" in stream.getvalue()


@pytest.mark.parametrize(
    ("level", "heard"),
    [("debug", ["gateway", "uvicorn.error", "a library!"]), ("info", ["uvicorn.error", "a library!"]), ("error", [])],
)
def test_other_libraries_are_heard_from_warning_up_only(level: str, heard: list[str]) -> None:
    configure(level, "json", stream=(stream := io.StringIO()))

    logging.getLogger("gateway").debug("gateway")
    logging.getLogger("uvicorn.error").info("uvicorn.error")
    logging.getLogger("httpcore2").debug("httpcore2")
    logging.getLogger("a.library").info("a library")
    logging.getLogger("a.library").warning("a library!")

    assert [orjson.loads(line)["message"] for line in written(stream)] == heard


def test_python_warnings_go_to_the_log() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        configure("info", "json", stream=(stream := io.StringIO()))
        warnings.warn("old", stacklevel=1)

    [line] = written(stream)
    assert "UserWarning: old" in orjson.loads(line)["message"]


def test_stderr_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "text")

    logging.getLogger("gateway").info("hello")
    written(io.StringIO())

    assert capsys.readouterr().err.endswith("gateway [-] hello\n")


def test_a_stuck_sink_stops_nobody_and_what_it_costs_is_counted() -> None:
    stream = StuckStream()
    handler = BackgroundHandler(stream, capacity=2)
    handler.setFormatter(TextFormatter(Redactor()))
    logger = logging.Logger("test")
    logger.addHandler(handler)

    logger.info("with the writer")
    stream.reached.wait()
    for number in range(5):
        logger.info("waits or is dropped: %d", number)
    stream.gate.set()
    handler.flush()
    logger.info("after")
    handler.flush()
    handler.close()

    messages = [line.split("] ", 1)[1] for line in stream.getvalue().splitlines()]
    assert messages == [
        "with the writer",
        "waits or is dropped: 0",
        "waits or is dropped: 1",
        "3 log records are missing here: what reads the log was too slow",
        "after",
    ]


def test_a_stuck_sink_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.telemetry.background.FLUSH_SECONDS", 0.001)
    stream = StuckStream()
    handler = BackgroundHandler(stream)
    handler.handle(logging.makeLogRecord({"msg": "stuck"}))
    stream.reached.wait()

    handler.close()

    assert stream.getvalue() == ""
    stream.gate.set()
    handler.close()
    assert stream.getvalue() == "stuck\n"


@given(message=st.text(), extra=st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary())
def test_no_record_is_too_odd_to_be_formatted(message: str, extra: object) -> None:
    record = logging.makeLogRecord({"msg": message, "levelname": "INFO", "extra": extra})

    assert "\n" not in TextFormatter(Redactor()).format(record)
    assert orjson.loads(JsonFormatter(Redactor()).format(record))["level"] == "info"
