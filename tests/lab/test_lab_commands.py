"""Words for a running lab: its keyboard, a second terminal, mysteries; the pages that it shows."""

import os
import pty
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType

import pytest
import trio

from tests.helpers.program import COMMAND, environment
from tests.helpers.scrape import fetch
from tests.helpers.servers import PATIENCE
from tests.lab.labs import get, links, running
from triojam.cli.main import main
from triojam.errors import LabError
from triojam.lab.commands import CONTROL, MYSTERY, STOP, listen, send
from triojam.lab.configuration import find_shipped
from triojam.lab.faults import FAULTS
from triojam.lab.network import LOOPBACK, Network, choose_network
from triojam.lab.pages import Reply, alertmanager_page, answering, find_links, first_scrape, serve_runbooks
from triojam.web.http_connection import Request, Response
from triojam.web.http_server import HttpServer

WORDS = ", ".join([*FAULTS, MYSTERY, STOP, "list", "help"])
# As a shell does with `command &`: it runs in a process group that does not have the terminal.
BACKGROUND = """
import os, signal, sys
command = os.fork()
if command == 0:
    os.setpgid(0, 0)
    os.execvp(sys.argv[1], sys.argv[1:])
signal.signal(signal.SIGTERM, lambda *_: os.kill(command, signal.SIGTERM))
sys.exit(os.waitstatus_to_exitcode(os.waitpid(command, 0)[1]))
"""


@contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """Open a terminal: the side of the keyboard, and that of the program."""
    sides = pty.openpty()
    try:
        yield sides
    finally:
        for each in sides:
            os.close(each)


async def inject(temporary: Path, word: str) -> subprocess.CompletedProcess[str]:
    """Tell a lab something from a second terminal."""
    run = partial(
        subprocess.run,
        [*COMMAND, "lab", "--inject", word],
        env=environment(TMPDIR=str(temporary)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    return await trio.to_thread.run_sync(run)


async def test_words_come_from_a_pipe(fake_programs: str, temporary: Path) -> None:
    """A fault is caused and stopped by its name; a wrong word gets one line with all words."""
    async with running(temporary, stdin=subprocess.PIPE, PATH=fake_programs) as lab:
        assert lab.process.stdin
        await lab.started()
        assert "Type the name of a fault" not in "".join(lab.printed)  # no terminal
        await lab.process.stdin.send_all(b"\n" + b"x" * 1000 + b"\ngarb")
        await lab.says(f"^unknown word 'x+': expected one of {WORDS}$")
        await lab.process.stdin.send_all(b"age\nclock\nhelp\n")
        await lab.says("^garbage begins$")
        await lab.says("^garbage still lasts; stop ends it$")
        await lab.says(f"^Type one of {WORDS}. Ctrl-C ends the lab.$")
        await lab.process.stdin.send_all(b"STOP\n")
        await lab.says("fault    garbage is over")
        assert any("fault    garbage for 40 s: 10 clients send random bytes" in each for each in lab.printed)
        await lab.process.stdin.send_all(b"stop\nlist\n")
        await lab.says("^no fault lasts now$")
        for name, each in FAULTS.items():
            await lab.says(f"^{name} +{re.escape(each.description)}$")
        await lab.process.stdin.aclose()
        assert (await inject(temporary, "clock")).stdout == "clock begins\n"  # the lab goes on
        await lab.says("fault    clock for 40 s")
        assert await lab.ends(signal.SIGTERM) == 143


async def test_words_come_from_a_terminal(fake_programs: str, temporary: Path) -> None:
    """The lab says that words may be typed, and does what is typed; Ctrl-C ends it."""
    with terminal() as (keyboard, stdin):
        new_session = ["setsid", "--ctty"]
        async with running(temporary, stdin=stdin, before=new_session, PATH=fake_programs) as lab:
            await lab.started()
            assert "Type the name of a fault to cause it, or help." in lab.printed
            os.write(keyboard, b"resets\n")
            await lab.says("^resets begins$")
            os.write(keyboard, b"\x03")
            assert await lab.ends() == 130


async def test_a_lab_in_the_background_leaves_the_keyboard_alone(fake_programs: str, temporary: Path) -> None:
    """The kernel would stop a background process that reads from its terminal."""
    with terminal() as (keyboard, stdin):
        in_background = ["setsid", "--ctty", sys.executable, "-c", BACKGROUND]
        async with running(temporary, stdin=stdin, before=in_background, PATH=fake_programs) as lab:
            await lab.started()
            os.write(keyboard, b"resets\n")
            assert (await inject(temporary, "clock")).stdout == "clock begins\n"
            await lab.says("fault    clock for 40 s")
            assert "resets begins" not in lab.printed
            os.killpg(os.getpgid(lab.process.pid), signal.SIGTERM)
            assert await lab.ends() == 143


async def test_a_closed_stdin_is_no_keyboard(fake_programs: str, temporary: Path) -> None:
    """A lab whose stdin was closed does not read another file in its place."""
    command = ["sh", "-c", f"exec {' '.join(COMMAND)} lab --duration 1 <&-"]
    environ = environment(TMPDIR=str(temporary), PATH=fake_programs)
    run = partial(subprocess.run, command, env=environ, capture_output=True, text=True, check=False)
    ended = await trio.to_thread.run_sync(run)
    assert (ended.returncode, ended.stderr) == (0, "")


async def test_words_come_from_a_second_terminal(fake_programs: str, temporary: Path) -> None:
    """`--inject` gets the lab's answer; a refusal is exit status 1."""
    async with running(temporary, PATH=fake_programs) as lab:
        await lab.started()
        (control,) = temporary.glob(f"*/{CONTROL}")  # noqa: ASYNC240  # a small folder
        assert control.stat().st_mode & 0o777 == 0o600
        assert control.parent.stat().st_mode & 0o777 == 0o700
        refused = await inject(temporary, "stop")
        assert (refused.returncode, refused.stderr) == (1, "triojam: lab: no fault lasts now\n")
        done = await inject(temporary, "resets")
        assert (done.returncode, done.stdout) == (0, "resets begins\n")
        await lab.says("fault    resets for 40 s")
        async with running(temporary, PATH=fake_programs) as second:
            await second.started()
            unclear = await inject(temporary, "stop")
            assert unclear.returncode == 1
            assert "2 labs run here; type the word in the lab's own terminal" in unclear.stderr
            second.process.send_signal(signal.SIGTERM)
            assert await second.process.wait() == 143
        assert (await inject(temporary, "stop")).stdout == "resets ends\n"
        await lab.says("fault    resets is over")
        assert await lab.ends(signal.SIGTERM) == 143


def test_without_a_lab_no_word_arrives(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a lab, `--inject` says where it looked; a wrong word is exit status 2."""
    monkeypatch.setenv("TMPDIR", str(temporary))
    assert main(["lab", "--inject", "clock"]) == 1
    expected = f"triojam: lab: no lab runs with its folder in {temporary}; start one with triojam lab\n"
    assert capsys.readouterr().err == expected
    assert main(["lab", "--inject", "fire"]) == 2
    assert "invalid value 'fire' for --inject: expected one of slow-clients," in capsys.readouterr().err


async def test_a_lab_that_does_not_answer_is_one_line(temporary: Path, nursery: trio.Nursery) -> None:
    """A lab that ends while it is asked is no traceback."""
    folder = temporary / "triojam-lab-1"
    folder.mkdir()

    def fail(_word: str) -> None:
        raise trio.BrokenResourceError

    await nursery.start(listen, folder, fail)
    with pytest.raises(LabError, match="the lab does not answer"):
        await trio.to_thread.run_sync(send, "stop", temporary)


async def test_a_mystery_is_named_at_its_end(programs: None, temporary: Path) -> None:
    """The fault is chosen at random, and named at its end, with what the alerts said meanwhile."""
    seed = next(each for each in range(100) if random.Random(each).choice([*FAULTS]) == "clock")
    words = ["--mystery", "--seed", str(seed), "--fault-after", "1", "--fault-for", "100", "--speed", "60"]
    async with running(temporary, *words) as lab:
        await lab.says("fault    mystery for 100 s: which fault is it")
        await lab.says("FIRING   TriojamClockStepped")
        assert (
            await inject(temporary, "flood")
        ).stderr == "triojam: lab: mystery still lasts; stop ends it\n"
        assert not any("fault    clock" in line or "90 seconds" in line for line in lab.printed)
        assert (await inject(temporary, "stop")).stdout == "mystery ends\n"
        await lab.says("fault    the mystery was clock: The server's clock steps forward by 90 seconds")
        await lab.says("^ +can fire TriojamClockStepped, TriojamClockWrong$")
        await lab.says("^ +see http")
        await lab.says("^ +meanwhile: .*FIRING   TriojamClockStepped|^ +FIRING   TriojamClockStepped")
        assert await lab.ends(signal.SIGTERM) == 143


async def test_a_class_can_look(programs: None, temporary: Path) -> None:
    """With --bind, the printed addresses reach the lab on the given ports; Alertmanager stays on loopback."""
    ports = {each: Network("0.0.0.0").reserve_port() for each in ("port", "metrics-port", "prometheus-port")}
    ports["runbooks-port"] = Network("0.0.0.0").reserve_port()
    words = [word for name, port in ports.items() for word in (f"--{name}", str(port))]
    async with running(temporary, "--bind", "0.0.0.0", *words) as lab:
        await lab.started()
        shown = choose_network("0.0.0.0", {}).shown
        assert f"Every machine that reaches {shown} can read all of it but Alertmanager." in lab.printed
        expected = zip(("time", "metrics", "Prometheus", "runbooks"), ports.values(), strict=True)
        for name, port in expected:
            assert lab.address(name) == (shown, port)
        for url in links(lab.printed):
            assert (await get(url)).status == 200
        named = MappingProxyType({"Host": f"{Network('0.0.0.0').names.split(',')[0]}:1"})
        assert (await fetch(lab.address("metrics"), "/metrics", headers=named)).status == 200
        assert lab.address("Alertmanager")[0] == LOOPBACK
        assert await lab.ends(signal.SIGTERM) == 143


def test_a_class_may_ask_by_name() -> None:
    """Beside IP addresses and the host name, the names of an open lab are allowed; loopback needs none."""
    assert Network().names == ""
    assert ".local," in Network("0.0.0.0").names


def test_without_a_route_the_address_is_that_of_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a network shows the address that works."""

    def fail(*_arguments: object) -> None:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr("socket.socket.connect", fail)
    assert choose_network("0.0.0.0", {}).shown == LOOPBACK


async def serve(nursery: trio.Nursery, pages: Mapping[str, tuple[int, bytes]]) -> str:
    """Serve pages by their path, and return the URL of the server."""

    async def answer(request: Request) -> Response:
        await trio.lowlevel.checkpoint()
        return Response(*pages.get(request.path, (404, b"")))

    listener = Network().listen(0)
    url = Network().url(listener.getsockname()[1])
    await nursery.start(partial(HttpServer(answer).serve, [listener], stop=trio.Event()))
    return url


@pytest.mark.parametrize(
    ("found", "graphs", "alerts", "query"),
    [
        (["/graph", "/alerts"], "graph", "alerts", "graph?g0.range_input=5m&g0.tab=0&g0.expr=a%20%3E%201"),
        (["/query", "/alerts"], "query", "alerts", "query?g0.range_input=5m&g0.tab=0&g0.expr=a%20%3E%201"),
        (
            ["/classic/graph", "/classic/alerts"],
            "classic/graph",
            "classic/alerts",
            "classic/graph?g0.range_input=5m&g0.tab=0&g0.expr=a%20%3E%201",
        ),
        (
            [],
            "api/v1/query?query=up (JSON: this build has no page)",
            "api/v1/alerts (JSON: this build has no page)",
            "api/v1/query?query=a%20%3E%201",
        ),
    ],
)
async def test_links_lead_to_pages_that_answer(
    nursery: trio.Nursery, found: list[str], graphs: str, alerts: str, query: str
) -> None:
    """The lab finds the pages of each build of Prometheus, and names the API of a build without pages."""
    url = await serve(nursery, dict.fromkeys(found, (200, b"page")))
    seen = await find_links("", url)
    assert (seen.graphs, seen.alerts, seen.query("a > 1")) == (url + graphs, url + alerts, url + query)


async def test_the_lab_waits_for_the_first_scrape(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault before Prometheus's first scrape would be seen late or never."""
    bodies = [
        b'{"data":{"result":[]}}',
        b'{"data":{"result":[]}}',
        b'{"data":{"result":[{"value":[1,"1"]}]}}',
    ]
    left = iter(bodies)

    async def answer(_url: str) -> Reply:
        await trio.lowlevel.checkpoint()
        return Reply(200, next(left))

    monkeypatch.setattr("triojam.lab.pages.get", answer)
    monkeypatch.setattr("triojam.lab.pages.POLL_SECONDS", 0)
    await first_scrape("http://127.0.0.1:9090/", 1)
    assert list(left) == []


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b"<html><script src=script.js>", ""),
        (b"does not include a web\n  application", "api/v2/alerts (JSON: this build has no page)"),
    ],
)
async def test_a_page_that_says_that_there_is_none_is_not_shown(
    nursery: trio.Nursery, body: bytes, shown: str
) -> None:
    """Debian's Alertmanager answers 200 with a text about a missing page."""
    url = await serve(nursery, {"/": (200, body)})
    assert await alertmanager_page(url) == url + shown


async def test_an_address_that_does_not_answer_is_not_shown(nursery: trio.Nursery) -> None:
    """An error, a redirection, or no server is no page."""
    url = await serve(nursery, {"/": (302, b""), "/error": (500, b"")})
    for each in (url, f"{url}error", Network().url(Network().reserve_port())):
        assert await answering(each) == "does not answer"


async def test_the_runbooks_have_an_anchor_for_each_alert(nursery: trio.Nursery) -> None:
    """The lab serves the runbooks as a page, and nothing else."""
    folder = find_shipped("dashboards")
    text = (folder / "RUNBOOKS.md").read_text("utf-8")
    url = await nursery.start(serve_runbooks, text, Network())
    page = (await get(url)).text
    names = re.findall(r"- alert: (\w+)", (folder / "prometheus/rules/alerts.yml").read_text("utf-8"))
    assert names
    assert [name for name in names if f'id="{name.lower()}"' not in page] == []
    assert "<script" not in page
    assert (await get(f"{url}/other")).status == 404
