"""Structured log lines that never hold up the service."""

import logging
import os
import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor

# Makes a logger that lets lines of this level ("debug", "info", …) and above through.
LoggerFactory = Callable[[str], FilteringBoundLogger]

# A thousand lines are about 200 kB: minutes of a service's log, whose reader has surely stalled by then.
QUEUED_LINES = 1000
# How long the end of the process waits for the reader to take the last lines.
LAST_LINES_SECONDS = 1.0

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


class LineWriter:
    """Writes text to a file descriptor from a thread of its own; a context manager that owns that thread.

    A reader that stalls (a stopped terminal, a full pipe) stalls that thread alone. Once the queue is
    full, lines are dropped and counted; at the end the reader has `patience` seconds for the last of
    them. A thread, because no way of polling covers terminals, pipes and files alike, and making the
    descriptor non-blocking would change it for whoever shares it.
    """

    def __init__(
        self, descriptor: int, *, queued_lines: int = QUEUED_LINES, patience: float = LAST_LINES_SECONDS
    ) -> None:
        self.dropped = 0
        self._patience = patience
        self._descriptor = descriptor
        self._queue: queue.Queue[bytes | None] = queue.Queue(queued_lines)
        # A daemon: a reader that never comes back must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="triojam log writer", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._queue.put(None, timeout=self._patience)
        except queue.Full:
            return
        self._thread.join(self._patience)

    def write(self, text: str) -> int:
        """Queue `text`, or drop it; never waits. Part of the text file interface."""
        try:
            self._queue.put_nowait(text.encode("utf-8", "backslashreplace"))
        except queue.Full:
            self.dropped += 1
        return len(text)

    def flush(self) -> None:
        """Do nothing: part of the text file interface."""

    def _run(self) -> None:
        while (line := self._queue.get()) is not None:
            rest = memoryview(line)
            try:
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
            except OSError:  # the reader is gone; the service is not
                self.dropped += 1


def make_logger_factory(writer: LineWriter, *, style: str, colors: bool) -> LoggerFactory:
    """Return a factory of loggers that write to `writer`.

    style: "console", for people, or "json", one object a line.
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

    def make_logger(level: str) -> FilteringBoundLogger:
        logger = structlog.wrap_logger(
            structlog.WriteLogger(writer),  # type: ignore[arg-type]  # only write and flush are used
            processors=processors,
            wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        )
        return cast(FilteringBoundLogger, logger.bind())

    return make_logger


def _without_sentence(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Leave out what is for a person at a terminal: the fields say it to programs."""
    event.pop("sentence", None)
    return event


def _sentence_alone(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Write an event that has a sentence as that sentence, without its fields."""
    if (sentence := event.get("sentence")) is None:
        return event
    return {"event": sentence, "level": event["level"]}


def make_library_logger(level: str) -> FilteringBoundLogger:
    """Return a logger that hands its events to the standard library's logger "triojam".

    For programs that serve inside a nursery of their own: they decide what becomes of log lines.
    """
    logger = structlog.wrap_logger(
        logging.getLogger("triojam"),
        processors=[_without_sentence, structlog.stdlib.render_to_log_kwargs],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
    )
    return cast(FilteringBoundLogger, logger.bind())


class _Bridge(logging.Handler):
    def __init__(self, log: Callable[[], FilteringBoundLogger]) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log().log(record.levelno, record.getMessage(), exc_info=record.exc_info)


def make_bridge(log: Callable[[], FilteringBoundLogger], *, name: str) -> logging.Logger:
    """Return a standard library logger, for a library that asks for one, whose records end up in `log()`."""
    bridge = logging.Logger(name, logging.WARNING)  # noqa: LOG001  # on purpose not in the global registry
    bridge.addHandler(_Bridge(log))
    return bridge


def take_over_standard_logging(log: Callable[[], FilteringBoundLogger]) -> None:
    """Send what any library logs to `log()`: by default it is written to stderr, and waits for its reader."""
    logging.basicConfig(handlers=[_Bridge(log)], level=logging.WARNING, force=True)
    logging.captureWarnings(capture=True)
