"""The log is bounded in bytes, and its lines stay whole."""

import os
import threading

import pytest

from triojam.process.logs import QUEUED_BYTES, LineWriter


def test_long_lines_are_dropped_before_they_fill_the_memory() -> None:
    """While the reader stalls, the queue holds at most QUEUED_BYTES, however few its lines are."""
    reading, writing = os.pipe()
    with LineWriter(writing, patience=0.01) as writer:
        line = "x" * (QUEUED_BYTES // 8) + "\n"
        for _ in range(100):
            writer.write(line)
        assert writer.dropped >= 100 - 8 - 2  # the pipe and the thread's hand have one each
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("size", [10, 5_000, 200_000])
def test_lines_are_whole_on_a_descriptor_that_does_not_block(size: int) -> None:
    """A descriptor that another process made non-blocking gets every line whole."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    received = bytearray()

    def read() -> None:
        while data := os.read(reading, 1000):
            received.extend(data)

    reader = threading.Thread(target=read)
    lines = [f"{number:05}" + "x" * size + "\n" for number in range(5)]
    with LineWriter(writing, patience=30) as writer:
        for line in lines:
            writer.write(line)
        reader.start()
    os.close(writing)
    reader.join()
    os.close(reading)
    assert received.decode() == "".join(lines)
    assert writer.dropped == 0
