"""Structured log lines, written without ever blocking the service."""

import logging
import os
import queue
import select
import threading
from collections.abc import Callable
from typing import Any, Self, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor

# Makes a logger for a level ("debug", "info", …) and above.
LoggerFactory = Callable[[str], FilteringBoundLogger]

# Minutes of a service's log: when the queue is full, the reader has stalled. A traceback is one long line.
QUEUED_LINES = 1000
QUEUED_BYTES = 1024 * 1024
# How long to wait for room in a descriptor that another process made non-blocking, at a time, in seconds.
ROOM_SECONDS = 1.0
# At its end, the process waits this long for the reader of the last lines, in seconds.
LAST_LINES_SECONDS = 1.0


class LineWriter:
    """Writes text to a file descriptor from its own thread; a context manager that owns that thread.

    A reader that stalls (a stopped terminal, a full pipe) blocks only that thread. When the queue is full,
    lines are dropped and counted. At the end, the reader has `patience` seconds for the last lines. It is a
    thread, because polling does not work for files, and a non-blocking descriptor would be non-blocking for
    every process that shares it.
    """

    def __init__(
        self, descriptor: int, *, queued_lines: int = QUEUED_LINES, patience: float = LAST_LINES_SECONDS
    ) -> None:
        self.dropped = 0
        self._patience = patience
        self._descriptor = descriptor
        self._queue: queue.Queue[bytes | None] = queue.Queue(queued_lines)
        # Bytes that were queued and bytes that left the queue: each has one thread that writes it.
        self._queued = self._left = 0
        # A daemon thread: a reader that has stalled for ever must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="triojam log writer", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        try:
            self._queue.put(None, timeout=self._patience)
        except queue.Full:
            return
        self._thread.join(self._patience)

    def write(self, text: str) -> int:
        """Queue `text`, or drop it; never wait. Part of the text file interface."""
        line = text.encode("utf-8", "backslashreplace")
        if self._queue.full() or self._queued - self._left + len(line) > QUEUED_BYTES:
            self.dropped += 1
        else:
            self._queue.put_nowait(line)
            self._queued += len(line)
        return len(text)

    def flush(self) -> None:
        """Do nothing: part of the text file interface."""

    def _run(self) -> None:
        while (line := self._queue.get()) is not None:
            rest = memoryview(line)
            try:
                while rest:
                    rest = rest[self._write_some(rest) :]
            except OSError:  # the reader is gone; the service is not
                self.dropped += 1
            self._left += len(line)

    def _write_some(self, data: memoryview) -> int:
        """Write what fits, and return its length."""
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:
            # Half a line must not be lost: the next one would be joined to it.
            select.select([], [self._descriptor], [], ROOM_SECONDS)
            return 0


def make_logger_factory(writer: LineWriter, *, style: str, colors: bool) -> LoggerFactory:
    """Return a factory of loggers that write to `writer`.

    style: "console", for people, or "json", one object per line.
    """
    processors: list[Processor] = [structlog.processors.add_log_level]
    if style == "json":
        processors += [
            _without_sentence,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    else:
        processors += [
            _sentence_alone,
            structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S", utc=False),
            structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback),
        ]
    output = structlog.WriteLogger(writer)  # type: ignore[arg-type]  # only write and flush are used
    return lambda level: _make_logger(output, processors, level)


def make_library_logger(level: str) -> FilteringBoundLogger:
    """Return a logger that sends its events to the standard library's logger "triojam".

    It is for programs that call `serve` in their own nursery: they configure the logging.
    """
    processors: list[Processor] = [_without_sentence, structlog.stdlib.render_to_log_kwargs]
    return _make_logger(logging.getLogger("triojam"), processors, level)


def _make_logger(output: Any, processors: list[Processor], level: str) -> FilteringBoundLogger:
    filtering = structlog.make_filtering_bound_logger(level)
    return cast(
        FilteringBoundLogger,
        structlog.wrap_logger(output, processors=processors, wrapper_class=filtering).bind(),
    )


def _without_sentence(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Remove the sentence, which is for people: its facts are in the fields."""
    event.pop("sentence", None)
    return event


def _sentence_alone(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Replace an event by its sentence, without the fields, if it has one."""
    if (sentence := event.get("sentence")) is None:
        return event
    return {"event": sentence, "level": event["level"]}


class _Bridge(logging.Handler):
    def __init__(self, log: Callable[[], FilteringBoundLogger]) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log().log(record.levelno, record.getMessage(), exc_info=record.exc_info)


def make_bridge(log: Callable[[], FilteringBoundLogger], *, name: str) -> logging.Logger:
    """Return a logger of the standard library, for a library that takes one; its records go to `log()`."""
    bridge = logging.Logger(name, logging.WARNING)  # noqa: LOG001  # on purpose not in the global registry
    bridge.addHandler(_Bridge(log))
    return bridge


def take_over_standard_logging(log: Callable[[], FilteringBoundLogger]) -> None:
    """Send the records of all libraries to `log()`: by default, they block on the reader of stderr."""
    logging.basicConfig(handlers=[_Bridge(log)], level=logging.WARNING, force=True)
    logging.captureWarnings(capture=True)
