"""Log lines, and their writer, which never blocks the service."""

import json
import logging
import os

from tests.helpers.servers import Events
from triojam.process.logs import LineWriter, make_bridge, make_library_logger, make_logger_factory


def read_all(descriptor: int) -> str:
    """Read a pipe to its end."""
    with os.fdopen(descriptor, encoding="utf-8") as file:
        return file.read()


def test_every_line_is_written_in_order() -> None:
    """Lines are written whole and in order, and the end of the writer waits for them."""
    reader, descriptor = os.pipe()
    with LineWriter(descriptor) as writer:
        log = make_logger_factory(writer, style="json", colors=False)("info")
        for number in range(100):
            log.info("line", number=number)
            log.debug("not this")
    os.close(descriptor)
    lines = [json.loads(line) for line in read_all(reader).splitlines()]
    assert [line["number"] for line in lines] == list(range(100))
    assert lines[0]["level"] == "info"
    assert lines[0]["timestamp"].endswith("Z")
    assert writer.dropped == 0


def test_a_stalled_reader_loses_lines_and_does_not_block() -> None:
    """If the reader stalls, writing does not wait, and dropped lines are counted."""
    reader, descriptor = os.pipe()
    with LineWriter(descriptor, queued_lines=10) as writer:
        for _ in range(1000):
            writer.write("x" * 10_000)
        assert writer.dropped > 900
        os.close(reader)  # otherwise the writer would wait for its last lines
    os.close(descriptor)


def test_a_reader_that_is_gone_loses_lines() -> None:
    """Lines for a closed pipe are dropped and counted."""
    reader, descriptor = os.pipe()
    os.close(reader)
    with LineWriter(descriptor) as writer:
        writer.write("one\n")
        writer.flush()
    os.close(descriptor)
    assert writer.dropped == 1


def test_a_stalled_reader_does_not_block_the_end() -> None:
    """The process can end although the last lines are never read, with a full queue and without."""
    for lines in (1, 100):
        reader, descriptor = os.pipe()
        with LineWriter(descriptor, queued_lines=5, patience=0.05) as writer:
            for _ in range(lines):
                writer.write("x" * 1_000_000)
        os.close(reader)


def test_console_lines_have_tracebacks_once() -> None:
    """On a console, an exception is shown once, as Python shows it."""
    reader, descriptor = os.pipe()
    with LineWriter(descriptor) as writer:
        log = make_logger_factory(writer, style="console", colors=False)("debug")
        try:
            _ = 1 / 0
        except ZeroDivisionError:
            log.exception("failed")
    os.close(descriptor)
    text = read_all(reader)
    assert text.count("Traceback (most recent call last)") == 1
    assert "ZeroDivisionError" in text


def test_the_bridge_makes_events_of_a_librarys_records() -> None:
    """A record of the standard library's logging becomes an event of the server's log."""
    events = Events()
    bridge = make_bridge(lambda: events.make_logger("info"), name="x")
    bridge.error("broken: %s", 7)
    bridge.info("chatter")
    assert [(each["event"], each["level"]) for each in events] == [("broken: 7", "error")]
    assert "x" not in logging.Logger.manager.loggerDict


def test_the_library_logger_has_fields() -> None:
    """The standard library's logger gets the event as its message, and the fields beside it."""
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    handler = Keep()
    logger = logging.getLogger("triojam")
    logger.addHandler(handler)
    try:
        make_library_logger("info").warning("something", port=7)
    finally:
        logger.removeHandler(handler)
    assert records[0].getMessage() == "something"
    assert vars(records[0])["port"] == 7
