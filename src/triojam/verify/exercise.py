"""How the rules of the exercise and of its later editions are judged."""

import time
from math import floor

import trio

from triojam.client.time_of_day import DAY, fold, second_of_day
from triojam.core.protocol import REQUEST, read_jam
from triojam.verify.client import TIME_OF_DAY, Client, End, quoted
from triojam.verify.subject import Subject
from triojam.verify.vectors import BAD_COMMANDS, REQUESTS, Vector

MORE_BYTES = 0.2  # how long to look for bytes after an answer
# A request is sent in the middle of a second, so that a small difference of two clocks does not matter.
MIDDLE = (0.3, 0.6)
OLD = 1.1  # seconds after which a time that was read too early is wrong
# A clock that is read in a cheap way, such as time(NULL), is late by up to one tick of the kernel.
TICK = 0.01
HOUR, QUARTER = 3600, 900
SILENT_CLIENTS = 4


async def port_open(subject: Subject) -> None:
    """The server accepts a connection."""
    await subject.open()


async def answered(subject: Subject) -> None:
    """A request gets a time, perhaps not in the right form."""
    client = await subject.ask()
    end = await client.receive_times(patient=True)
    if end is not End.ENOUGH:
        raise client.broken(client.why_no_time(end))


async def exact_bytes(subject: Subject) -> None:
    """The whole answer is right, byte by byte."""
    client = await subject.ask()
    end = await client.receive(lambda data: TIME_OF_DAY.search(data) and data.endswith(b"\n"))
    with trio.move_on_after(MORE_BYTES):
        await client.receive(lambda data: data.count(b"\n") > 1)
    answer = bytes(client.received)
    match = TIME_OF_DAY.search(answer)
    if match is None:
        raise client.broken(client.why_no_time(end))
    if read_jam(answer) is None:
        raise client.broken(_what_is_wrong(answer[: match.start()], match[0], answer[match.end() :]))


def _what_is_wrong(before: bytes, time_of_day: bytes, after: bytes) -> str:
    if before:
        return f"bytes stand before the time: {quoted(before)}"
    if read_jam(time_of_day + b"\r\n") is None:
        return f"{quoted(time_of_day)} is not of the form JAM hh:mm:ss, with hours from 00 to 23"
    return (
        f"the time is followed by {quoted(after)}, not by CR LF alone"
        if after
        else "no CR LF follows the time"
    )


async def starts_with_time(subject: Subject) -> None:
    """Only the first four bytes and the end of a line matter."""

    async def ask(vector: Vector) -> None:
        client = await subject.ask(vector.sent)
        end = await client.receive_times()
        if end is not End.ENOUGH:
            raise client.broken(client.why_no_time(end))

    await subject.each(REQUESTS, ask)


async def right_second(subject: Subject) -> None:
    """The time is that of the moment at which the request came."""
    client = await subject.open()
    await trio.sleep(OLD)
    difference = await _difference(subject, client)
    if not difference:
        return
    await client.aclose()
    await _middle_of_a_second()  # the new client connects and asks within the same second
    fresh = await subject.open()
    if await _difference(subject, fresh) == 0:
        raise client.broken(
            f"the time is {format_seconds(difference)}: it was read when the client connected, "
            "not when the request came"
        )
    raise client.broken(_name_difference(difference, subject))


async def _difference(subject: Subject, client: Client) -> int:
    """Ask, and return how many seconds the answer is ahead of the true time."""
    await _middle_of_a_second()
    asked = time.time() - TICK
    await client.send(REQUEST)
    end = await client.receive_times()
    answered = time.time()
    match = TIME_OF_DAY.search(bytes(client.received))
    if match is None:
        raise client.broken(client.why_no_time(end))
    hour, minute, second = map(int, match.groups())
    told = hour * 3600 + minute * 60 + second
    differences = [
        round(fold(told - second_of_day(moment, subject.zone)))
        for moment in range(floor(asked), floor(answered) + 1)
    ]
    return min(differences, key=abs)


async def _middle_of_a_second() -> None:
    while not MIDDLE[0] < time.time() % 1 < MIDDLE[1]:  # noqa: ASYNC110  # a clock sets no Event
        await trio.sleep(0.02)


def _name_difference(difference: int, subject: Subject) -> str:
    """Say what a wrong time means."""
    zone_part = round(difference / QUARTER) * QUARTER
    rest = difference - zone_part
    clock = f", and its clock differs by {rest} s" if rest else ""
    if zone_part == 0:
        return f"the server's clock differs by {rest} s"
    now = second_of_day(time.time(), subject.zone)
    told = (now + difference) % DAY
    if abs(zone_part) == DAY // 2:
        if 1 <= told // HOUR <= 12:
            return f"the time is twelve hours off: a 12-hour clock (%I in place of %H)?{clock}"
        return f"the time is twelve hours off, and not of a 12-hour clock{clock}"
    utc = abs(fold(time.time() % DAY - told)) < QUARTER / 2
    hours, minutes = divmod(abs(zone_part) // 60, 60)
    ahead = f"{'ahead' if zone_part > 0 else 'behind'} by {hours}:{minutes:02} h"
    named = "tells UTC" if utc else "tells the time of another zone"
    return f"the server {named}, {ahead}{clock}; --timezone names the zone that it should have"


def format_seconds(difference: int) -> str:
    """Say how far a time is ahead or behind."""
    return f"{abs(difference)} s {'ahead' if difference > 0 else 'behind'}"


async def concurrent(subject: Subject) -> None:
    """Silent clients do not keep another client from its answer."""
    for place in range(SILENT_CLIENTS):
        silent = await subject.open()
        if not place:
            await silent.send(b"TI")
    client = await subject.ask()
    end = await client.receive_times(patient=True)
    if end is not End.ENOUGH:
        raise client.broken(f"beside {SILENT_CLIENTS} silent clients, {client.why_no_time(end)}")
    subject.is_concurrent()


async def anything_else(subject: Subject) -> None:
    """A line that does not start with TIME gets no time."""

    async def say(vector: Vector) -> None:
        client = await subject.ask(vector.sent)
        await client.receive(lambda data: b"\n" in data or TIME_OF_DAY.search(data), wanted=False)
        if client.times:
            raise client.broken(f"{quoted(vector.sent)} was answered with the time")

    await subject.each(BAD_COMMANDS, say)


async def bare_line_feed(subject: Subject) -> None:
    """A line that ends with LF alone gets no time."""
    client = await subject.ask(b"TIME\n")
    await client.receive(lambda data: b"\n" in data or TIME_OF_DAY.search(data), wanted=False)
    if client.times:
        raise client.broken("a line without CR was answered with the time")


async def several_requests(subject: Subject) -> None:
    """Requests that come one after another on one connection are all answered."""
    client = await subject.open()
    for done in range(3):
        await client.send(REQUEST)
        if await client.receive_times(done + 1) is not End.ENOUGH:
            raise client.broken(f"request {done + 1} on the same connection got no time")


async def quit_closes(subject: Subject) -> None:
    """QUIT closes the connection."""
    client = await subject.ask(b"QUIT\r\n")
    end = await client.receive(TIME_OF_DAY.search)
    if client.times:
        raise client.broken("QUIT was answered with the time")
    if end is End.SILENT:
        raise client.broken("the connection stayed open")
