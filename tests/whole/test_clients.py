"""The client commands as whole programs: their output, their exit status, and Ctrl-C."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import bcrypt
import pytest
import trio

from tests.helpers.bad_servers import Behaviour, closes_at_once, says, silent, start_bad, tells
from tests.helpers.program import (
    COMMAND,
    FREE_PORTS,
    UNMEASURED,
    Program,
    environment,
    launched,
    parse_address,
    serving,
)
from tests.helpers.requirements import cannot_run, require_program
from tests.helpers.scrape import scrape
from tests.helpers.screen import Screen, draw_until, open_terminal, type_text
from tests.helpers.servers import PATIENCE, authority, certificate_file, receive_all, start_tls
from tests.helpers.service_manager import Told
from tests.helpers.waiting import eventually

FAST = ("--timeout", "0.3")


async def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    with trio.fail_after(3 * PATIENCE):
        ended = await trio.run_process(
            [*COMMAND, *words],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=environment(**variables),
        )
    return subprocess.CompletedProcess(words, ended.returncode, ended.stdout.decode(), ended.stderr.decode())


async def interrupted(
    words: Sequence[str], ready: Callable[[], Awaitable[None]], signum: signal.Signals = signal.SIGINT
) -> tuple[int, str]:
    """Run a command, interrupt it after `ready`, and return its status and output."""
    async with launched([*COMMAND, *words], {}, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with trio.fail_after(PATIENCE):
            await ready()
            process.send_signal(signum)
            printed = await receive_all(process.stdout)
            return await process.wait(), printed.decode()


async def asked(program: Program, times: int) -> None:
    """Wait until a server has counted this number of requests."""
    while (await program.scrape()).total("triojam_requests_total") < times:
        await trio.lowlevel.checkpoint()


async def everything(screen: trio.lowlevel.FdStream) -> bytes:
    """Read a terminal until no process has it open."""
    drawn = b""
    async with screen:
        with trio.fail_after(PATIENCE), suppress(trio.BrokenResourceError):  # that is the end of a terminal
            while data := await screen.receive_some():
                drawn += data
    return drawn


def at(address: tuple[str, int]) -> str:
    """Return an address as a word of the command line."""
    return f"{address[0]}:{address[1]}"


async def test_ask_prints_one_line_a_server() -> None:
    """Each server has an aligned line, with the reason if it gave no time."""
    async with serving() as program:
        server, web = at(program.address), at(program.web)
        good = await run("ask", server, f"localhost:{program.address[1]}")
        assert (good.returncode, good.stderr) == (0, "")
        lines = good.stdout.splitlines()
        pattern = r"\S+ +\d\d:\d\d:\d\d  agrees within ± 0\.5\d s +round trip [\d.]+ [µm]s +127\.0\.0\.1:\d+"
        assert all(re.fullmatch(pattern, line) for line in lines)
        assert len({line.index("round trip") for line in lines}) == 1
        mixed = await run("ask", *FAST, server, "127.0.0.1:1", web)
        assert mixed.returncode == 1
        assert [line.split(maxsplit=1)[1] for line in mixed.stdout.splitlines()[1:]] == [
            "connection refused",
            "speaks HTTP, not TIME: is it the metrics port?",
        ]
        both = json.loads((await run("ask", "--json", server, "127.0.0.1:1")).stdout)
        assert both[0].keys() == {"server", "time", "offset", "bound", "round_trip", "address"}
        assert both[1] == {
            "server": "127.0.0.1:1", "error": "UnreachableError", "reason": "connection refused"
        }  # fmt: skip


async def test_ask_prints_each_line_on_a_terminal_when_it_is_known(nursery: trio.Nursery) -> None:
    """A terminal gets the line of a fast server while a slow one, named before it, is still waited for."""
    slow = at(await start_bad(nursery, silent))
    ours, theirs = pty.openpty()
    async with serving() as program:
        fast = at(program.address)
        words = ["ask", slow, fast, "--timeout", "600"]
        async with launched([*COMMAND, *words], {"TERM": "xterm", "TZ": "UTC"}, stdout=theirs) as process:
            os.close(theirs)
            screen = trio.lowlevel.FdStream(ours)
            drawn = b""
            with trio.fail_after(PATIENCE):
                while not re.search(rb"round trip .*\n", drawn):
                    drawn += await screen.receive_some()
            process.send_signal(signal.SIGINT)
            drawn += await everything(screen)
            assert await process.wait() == 130
    assert [line.split()[0] for line in drawn.decode().splitlines()] == [fast, slow]
    nursery.cancel_scope.cancel()


async def test_clients_name_the_server_that_is_wrong(nursery: trio.Nursery) -> None:
    """Of three servers, the one that differs is named: in a line, in JSON, and by watch when it changes."""
    good = [at(await start_bad(nursery, tells(time.time))) for _ in range(2)]
    wrong = at(await start_bad(nursery, tells(lambda: time.time() + 30)))
    done = await run("ask", *good, wrong, "--timezone", "UTC")
    assert done.returncode == 0
    said = rf"2 of 3 servers agree; {wrong} is wrong by \+[\d.]+ s ± [\d.]+ s"
    assert re.fullmatch(said, done.stdout.splitlines()[-1])
    answers = json.loads((await run("ask", *good, wrong, "--timezone", "UTC", "--json")).stdout)
    assert [each["agrees"] for each in answers] == [True, True, False]
    assert abs(answers[2]["off_by"] - 30) < 2
    assert answers[0]["off_by"] is None
    done = await run("watch", *good, wrong, "--timezone", "UTC", "--count", "3", "--interval", "0.05")
    lines = done.stdout.splitlines()
    assert [bool(re.fullmatch(said, line)) for line in lines].count(True) == 2  # once, and in the summary
    assert re.fullmatch(said, lines[-1])
    nursery.cancel_scope.cancel()


async def test_an_offset_beyond_the_limit_is_a_status(nursery: trio.Nursery) -> None:
    """`ask --max-offset` gives status 4 and names the server; below a second it asks precisely."""
    wrong = at(await start_bad(nursery, tells(lambda: time.time() + 30)))
    async with serving() as program:
        good = at(program.address)
        done = await run("ask", good, "--max-offset", "0.2")
        assert (done.returncode, done.stderr) == (0, "")
        assert " ms ± " in done.stdout
        done = await run("ask", good, wrong, "--max-offset", "5", "--timezone", "UTC")
        assert done.returncode == 4
        assert re.fullmatch(rf"triojam: {wrong}: \+.* s ± .* s, beyond 5 s\n", done.stderr)
        done = await run("ask", good, "127.0.0.1:1", "--max-offset", "5")
        assert done.returncode == 1
    nursery.cancel_scope.cancel()


async def test_ask_is_a_plugin_for_nagios() -> None:
    """`ask --nagios` prints one line, and ends with a status of Nagios, also for a wrong word."""
    async with serving() as program:
        done = await run("ask", at(program.address), "--nagios", "--max-offset", "5")
        assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
        assert re.match(r"TIME OK - 127\.0\.0\.1:\d+ .* \| offset=\S+s;;-5:5 bound=", done.stdout)
    done = await run("ask", "127.0.0.1:1", "--nagios")
    assert (done.returncode, done.stdout) == (2, "TIME CRITICAL - 127.0.0.1:1 connection refused\n")
    for words in (["a b"], ["--max-offset", "-1"], ["--json"], ["--colour"]):
        done = await run("ask", "--nagios", *words)
        assert (done.returncode, done.stderr) == (3, "")
        assert done.stdout.startswith("TIME UNKNOWN - ")
        assert done.stdout.count("\n") == 1


@pytest.mark.parametrize("command", [("ask",), ("watch", "--count", "1")])
async def test_clients_present_a_certificate(
    nursery: trio.Nursery, tmp_path: Path, command: tuple[str, ...]
) -> None:
    """With --cert and --key, ask and watch are served where a client certificate is wanted."""
    ca, pem, key = tmp_path / "ca.pem", tmp_path / "client.pem", tmp_path / "client.key"
    authority().cert_pem.write_to_path(str(ca))
    client = authority().issue_cert("client@example.org")
    client.cert_chain_pems[0].write_to_path(str(pem))
    client.private_key_pem.write_to_path(str(key))
    server = await start_tls(nursery, tls_client_ca=str(ca))
    assert server.server is not None
    address = at(server.server.tls_addresses[0])
    words = [*command, address, "--ca", str(ca), "--server-name", "localhost"]
    done = await run(*words, "--cert", str(pem), "--key", str(key))
    assert (done.returncode, done.stderr) == (0, "")
    done = await run(*words)
    assert done.returncode == 1
    assert "wants a client certificate: try it with --cert" in done.stdout
    for more, said in (
        (["--cert", str(pem)], f"invalid value '{pem}' for --cert: expected a PEM file of a certificate"),
        (["--key", str(key)], "--key needs --cert"),
        (["--cert", str(ca), "--key", str(key)], f"invalid value '{key}' for --key: expected the PEM file"),
        (["--cert", "/nonexistent"], "invalid value '/nonexistent' for --cert: expected a PEM file"),
        (["--cert", str(pem), "--key", "/dev/zero"], "invalid value '/dev/zero' for --key: expected"),
    ):
        done = await run(*words, *more)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert done.stderr.startswith(f"triojam: {said}")


async def test_ask_precise_finds_no_offset_on_this_machine() -> None:
    """The offset of a server on this machine is 0 within a bound below 0.1 s."""
    async with serving() as program:
        (found,) = json.loads((await run("ask", "--precise", "--json", at(program.address))).stdout)
        assert abs(found["offset"]) <= found["bound"] < 0.1


async def test_ask_imports_little() -> None:
    """The command does not import libraries for servers or plots."""
    code = "import sys; from triojam.cli.main import main; main(['ask', '127.0.0.1:1']); print(*sys.modules)"
    done = await trio.run_process([sys.executable, "-c", code], capture_stdout=True)
    modules = done.stdout.decode().split()
    assert "triojam.client.ask" in modules
    assert not {"h11", "matplotlib", "triojam.server"} & set(modules)


async def test_clients_ignore_the_settings_of_a_server() -> None:
    """A variable for the server, even a wrong one, changes nothing for a client."""
    async with serving() as program:
        assert (await run("ask", at(program.address), TRIOJAM_PORT="x", TRIOJAM_NONSENSE="1")).returncode == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("ask", "a b"), "invalid value 'a b' for SERVERS: expected HOST or HOST:PORT"),
        (
            ("ask", "fe80::1%eth0:45000"),
            "invalid value 'fe80::1%eth0:45000' for SERVERS: expected brackets: [fe80::1%eth0]:45000",
        ),
        (
            ("ask", "localhost", "45000"),
            "invalid value '45000' for SERVERS: expected HOST or HOST:PORT: did you mean localhost:45000?",
        ),
        (
            ("watch", "192.0.2.1", "7"),
            "invalid value '7' for SERVERS: expected HOST or HOST:PORT: did you mean 192.0.2.1:7?",
        ),
        (
            ("ask", "::1", "7"),
            "invalid value '7' for SERVERS: expected HOST or HOST:PORT: did you mean [::1]:7?",
        ),
        (("ask", "7"), "invalid value '7' for SERVERS: expected HOST or HOST:PORT, as in 127.0.0.1:7"),
        (
            ("ask", "--timezone", "Nowhere"),
            "invalid value 'Nowhere' for --timezone: expected system or an IANA time zone name",
        ),
        (("ask", "--ca", "/nonexistent"), "invalid value '/nonexistent' for --ca: expected a PEM file"),
        (("ask", "--timeout", "0"), "invalid value '0' for --timeout: expected a number above 0"),
        (("load", "--mix", "QUIT:1"), "invalid value 'QUIT:1' for --mix: expected KIND:WEIGHT"),
        (
            ("load", "--connections", "many"),
            "invalid value 'many' for --connections: expected a whole number",
        ),
        (
            ("load", "--metrics", "ftp://x"),
            "invalid value 'ftp://x' for --metrics: expected HOST:PORT or a URL",
        ),
        (
            ("load", "--metrics", "x:1", "--metrics", "http://x:1/"),
            "invalid value 'x:1, http://x:1/' for --metrics: expected each server only once",
        ),
        (
            ("load", "--plot", "x.gif"),
            "invalid value 'x.gif' for --plot: expected a file name that ends in .svg or .png",
        ),
        (("watch", "--colour"), "--colour"),
        *(
            (
                ("ask", "--server-name", name),
                f"invalid value {name!r} for --server-name: expected a host name",
            )
            for name in ("x" * 64, ".example.org", "", "a b")
        ),
    ],
)
async def test_bad_usage_gives_one_line(words: tuple[str, ...], said: str) -> None:
    """A wrong word gives one line on stderr that names it, and exit status 2."""
    done = await run(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("triojam: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


async def test_watch_on_a_pipe_prints_lines() -> None:
    """On a pipe each answer is a line, then comes a summary."""
    async with serving() as program:
        server = at(program.address)
        done = await run("watch", server, "127.0.0.1:1", "--count", "2", "--interval", "0.05")
    *lines, good, bad = done.stdout.splitlines()
    assert done.returncode == 1
    assert sorted(line.split()[0] for line in lines) == ["127.0.0.1:1"] * 2 + [server] * 2
    assert any(re.fullmatch(r"127.0.0.1:1  [\d:]{8}  connection refused", line) for line in lines)
    assert re.fullmatch(rf"{server}: 2 answered, 0 failed; round trip .* to .*, median .*", good)
    assert bad == "127.0.0.1:1: 0 answered, 2 failed"


async def test_watch_on_a_terminal_draws_a_table() -> None:
    """On a terminal watch redraws a table; Ctrl-C ends it with the summary and status 130."""
    async with serving() as program:
        ours, theirs = pty.openpty()
        async with launched(
            [*COMMAND, "watch", at(program.address), "--interval", "0.05"], {"TERM": "xterm"}, stdout=theirs
        ) as process:
            os.close(theirs)
            screen = trio.lowlevel.FdStream(ours)
            drawn = b""
            with trio.fail_after(PATIENCE):
                while not re.search(rb"failed(?s:.*)\xe2\x96\x88", drawn):  # a bar of the sparkline
                    drawn += await screen.receive_some()
            process.send_signal(signal.SIGINT)
            drawn += await everything(screen)
            assert await process.wait() == 130
    assert re.search(rb" answered, 0 failed; round trip ", drawn)


@pytest.mark.parametrize("columns", [200, 80, 60, 40])
async def test_watch_fits_its_terminal(columns: int) -> None:
    """At any width the time, the state and the counts are whole, and Ctrl-C leaves one header."""
    async with serving() as program:
        ours, theirs = open_terminal(columns)
        words = ["watch", at(program.address), "127.0.0.1:1", "--interval", "600"]
        async with launched([*COMMAND, *words], {"TERM": "xterm", "COLUMNS": ""}, stdout=theirs) as process:
            stream, screen = trio.lowlevel.FdStream(ours), Screen(columns)
            with trio.fail_after(PATIENCE):
                await draw_until(stream, screen, r"(?s)\d\d:\d\d:\d\d.* 1 +0\n(.*\n)*.* 0 +1(\n|$)")
                type_text(ours, "^C")  # as a terminal echoes it
                await draw_until(stream, screen, r"\^C")
                process.send_signal(signal.SIGINT)
                os.close(theirs)
                screen.feed(await everything(stream))
                assert await process.wait() == 130
    lines = screen.text().splitlines()
    headings = ["ok" if columns == 40 else "answered", "failed"]
    assert [line.split()[-2:] for line in lines].count(headings) == 1
    (good,) = [line for line in lines if re.search(r"\d\d:\d\d:\d\d", line)]
    assert good.split()[-2:] == ["1", "0"]
    table = " ".join(screen.text().partition(f"\n{at(program.address)}: ")[0].split())
    assert re.search(r"[+-]0\.\d\d s (.* )?± (.* )?0\.5\d s", table)
    assert re.search(r"connection (.* )?refused", table)
    assert ("█" in table) == (columns >= 80)
    assert ("round trip" in table) == (columns >= 80)
    assert (at(program.address) in table) == (columns >= 80)


async def test_watch_names_the_time_of_a_failure_on_a_pipe() -> None:
    """On a pipe, the line of a failure has the time of this machine."""
    done = await run("watch", "127.0.0.1:1", "--count", "1", "--timezone", "UTC")
    line, _ = done.stdout.splitlines()
    assert re.fullmatch(r"127\.0\.0\.1:1  \d\d:\d\d:\d\d  connection refused", line)


async def test_terminated_clients_print_their_results(nursery: trio.Nursery) -> None:
    """SIGTERM ends ask and watch as Ctrl-C does; the status is 143."""
    heard = trio.Event()

    async def hears(stream: trio.abc.Stream) -> None:
        async for _ in stream:
            heard.set()

    address = at(await start_bad(nursery, hears))
    for words in (["ask", address], ["watch", address, "127.0.0.1:1"]):
        heard = trio.Event()
        status, printed = await interrupted([*words, "--timeout", "60"], heard.wait, signal.SIGTERM)
        assert status == 143
        assert f"{address}  interrupted\n" in printed or f"{address}: 0 answered, 0 failed\n" in printed
    nursery.cancel_scope.cancel()


async def test_watch_ends_at_sigterm_as_process_1(nursery: trio.Nursery) -> None:
    """As the first process of a container, watch prints its summary at SIGTERM."""
    unshare = require_program("unshare", "util-linux")
    if os.geteuid():
        cannot_run("only root makes a PID namespace")
    heard = trio.Event()

    async def hears(stream: trio.abc.Stream) -> None:
        async for _ in stream:
            heard.set()

    address = at(await start_bad(nursery, hears))
    first = [unshare, "--pid", "--fork", "--mount-proc", "--kill-child"]
    words = [*first, *COMMAND, "watch", address, "--timeout", "60"]
    async with launched(words, {}, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with trio.fail_after(PATIENCE):
            await heard.wait()
            (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("ascii").split()  # noqa: ASYNC240  # not a disk
            os.kill(int(child), signal.SIGTERM)
            assert (await receive_all(process.stdout)).decode() == f"{address}: 0 answered, 0 failed\n"
            assert await process.wait() == 143
    nursery.cancel_scope.cancel()


async def test_interrupted_ask_prints_its_results(nursery: trio.Nursery) -> None:
    """After Ctrl-C ask prints the results so far; the status is 130."""
    heard = trio.Event()

    async def hears(stream: trio.abc.Stream) -> None:
        async for _ in stream:
            heard.set()

    address = at(await start_bad(nursery, hears))
    status, printed = await interrupted(["ask", address, "--timeout", "60"], heard.wait)
    assert (status, printed) == (130, f"{address}  interrupted\n")
    nursery.cancel_scope.cancel()


async def test_interrupted_watch_prints_its_summary() -> None:
    """After Ctrl-C watch prints the summary; the status is 130."""
    async with serving() as program:
        server = at(program.address)
        status, printed = await interrupted(
            ["watch", server, "--interval", "0.05"], partial(asked, program, 2)
        )
    assert status == 130
    assert re.search(rf"\n{server}: \d+ answered, 0 failed; ", printed)


async def test_load_reads_metrics_without_a_proxy() -> None:
    """A proxy of the environment is for the web; the load reads the counters from the server itself."""
    async with serving() as program:
        words = ("load", at(program.address), "--requests", "10", "--connections", "1")
        done = await run(
            *words,
            "--metrics",
            at(program.web),
            HTTP_PROXY="http://203.0.113.1:1",
            http_proxy="http://203.0.113.1:1",
        )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
async def test_interrupted_load_balances(signum: signal.Signals) -> None:
    """After Ctrl-C or SIGTERM load prints the result so far, which balances; the status names the signal."""
    async with serving() as program:
        words = ["load", at(program.address), "--duration", "60", "--metrics", at(program.web)]
        status, printed = await interrupted(words, partial(asked, program, 100), signum)
    assert status == 128 + signum
    assert "The balance closes." in printed
    assert re.search(r"failed +0\n", printed)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_load_reconciles_a_million(tmp_path: Path, *, tls: bool) -> None:
    """Two workers send a mix, while the server asks itself and reloads; all counts are equal."""
    ca = tmp_path / "ca.pem"
    authority().cert_pem.write_to_path(str(ca))
    secured = ("--tls-port", "0", "--tls-certificate", certificate_file()) if tls else ()
    words = ["--requests", "1000000", "--pipeline", "64", "--mix", "TIME:90,HELLO:5,TIME please:5"]
    words += ["--workers", "2", *(("--ca", str(ca), "--server-name", "localhost") if tls else ())]
    with Told.at(tmp_path / "notify") as told:
        watched = {"NOTIFY_SOCKET": told.address, "WATCHDOG_USEC": "300000"}
        async with launched([*COMMAND, *FREE_PORTS, *secured], watched | UNMEASURED) as process:
            program = Program(process)
            entry = await program.logged("serving")
            address, web = entry["tls" if tls else "addresses"][0], entry["metrics"][0]
            results: list[subprocess.CompletedProcess[str]] = []

            async def load() -> None:
                results.append(await run("load", address, *words, "--metrics", web, **UNMEASURED))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(load)

                async def requests_are_counted() -> bool:
                    return (await scrape(parse_address(web))).total("triojam_requests_total") > 0

                await eventually(requests_are_counted)
                process.send_signal(signal.SIGHUP)
                await program.logged("settings reloaded")
            checks = (await scrape(parse_address(web))).total("triojam_self_checks_total", result="success")
    (done,) = results
    assert (done.returncode, done.stderr) == (0, "")
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.strip()}
    assert rows["sent"] == ["1,000,000"]
    assert rows["client"] == ["1,000,000", "950,000", "50,000", "0", "0"]
    assert rows["server"] == ["1,000,000", "950,000", "50,000", "0"]
    assert "The balance closes." in done.stdout
    assert checks > 0


async def test_load_reconciles_a_mix(tmp_path: Path) -> None:
    """Rejected and cut lines balance too; the result is also a JSON file and a plot."""
    file, svg, png = (tmp_path / name for name in ("result.json", "plot.svg", "plot.png"))
    words = ["--requests", "20000", "--mix", "TIME:90,HELLO:5,split:5", "--json", str(file)]
    async with serving() as program:
        words += ["--metrics", f"http://{at(program.web)}/metrics"]
        done = await run("load", at(program.address), *words, "--plot", str(svg))
        assert (done.returncode, done.stderr) == (0, "")
        again = await run("load", at(program.address), "--requests", "10", "--plot", str(png))
        assert again.returncode == 0
    result = json.loads(file.read_text("utf-8"))
    assert (result["sent"], result["answered"], result["rejected"]) == (20_000, 19_000, 1000)
    assert result["failed"] == {}
    assert result["server_counted"] == {
        "requests": 20_000, "responses": 19_000, "rejected": 1000, "send_errors": 0, "restarts": 0
    }  # fmt: skip
    assert result["latency"].keys() == {"p50", "p75", "p90", "p99", "p99.9", "p99.99", "p100"}
    assert result["timeline"][-1]["settled"] == 20_000
    assert "<svg" in svg.read_text("utf-8")
    assert png.read_bytes().startswith(b"\x89PNG")


async def test_load_adds_the_counters_of_several_servers() -> None:
    """With two servers, their counters are added up, and requests of another client on either are noticed."""
    async with serving() as asked_one, serving() as other:
        words = ["load", at(asked_one.address), "--metrics", at(asked_one.web), "--metrics", at(other.web)]
        done = await run(*words, "--requests", "1000")
        assert (done.returncode, done.stderr) == (0, "")
        assert re.search(r"\nservers +1,000 +1,000 +0 +0\nThe balance closes\.\n", done.stdout)
        command = [*COMMAND, *words, "--duration", "1"]
        async with (
            await other.connect() as stranger,
            launched(command, {}, stdout=subprocess.PIPE) as process,
        ):
            assert process.stdout is not None
            await asked(asked_one, 1100)
            await stranger.send_all(b"TIME\r\n")
            printed = (await receive_all(process.stdout)).decode()
            assert await process.wait() == 3
    assert "The servers counted 1 request more than this client sent: other clients sent " in printed
    assert printed.endswith("The balance does not close.\n")


async def test_load_notices_requests_of_another_client() -> None:
    """Requests of another client leave the balance open; the status is 3."""
    async with serving() as program, await program.connect() as stranger:
        words = ["load", at(program.address), "--duration", "1", "--metrics", at(program.web)]
        async with launched([*COMMAND, *words], {}, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            await asked(program, 100)
            await stranger.send_all(b"TIME\r\nHELLO\r\n")
            printed = (await receive_all(process.stdout)).decode()
            assert await process.wait() == 3
    assert "The server counted 2 requests more than this client sent: other clients sent " in printed
    assert printed.endswith("The balance does not close.\n")


async def test_load_reads_metrics_behind_a_password_and_tls(tmp_path: Path) -> None:
    """With user, password and CA the balance closes; without one of them, one line names the flag."""
    users, password, ca, json_file = (tmp_path / name for name in ("users", "password", "ca.pem", "json"))
    users.write_text("ada:" + bcrypt.hashpw(b"hunter2", bcrypt.gensalt(4)).decode() + "\n", "ascii")
    password.write_text("hunter2\n", "ascii")
    authority().cert_pem.write_to_path(str(ca))
    secured = ("--metrics-tls", "--tls-certificate", certificate_file(), "--metrics-passwords", str(users))
    async with launched([*COMMAND, *FREE_PORTS, *secured], {}) as process:
        program = Program(process)
        entry = await program.logged("serving")
        address, web = entry["addresses"][0], entry["metrics"][0]
        words = [
            "load",
            address,
            "--requests",
            "1000",
            "--metrics",
            f"https://{web}",
            "--json",
            str(json_file),
        ]
        user, trust = ["--metrics-user", "ada"], ["--metrics-ca", str(ca)]
        for more, end in (
            ([], ": see --metrics-ca\n"),
            (trust, ": wants a user and a password: see --metrics-user\n"),
        ):
            done = await run(*words, *more)
            assert (done.returncode, done.stdout) == (1, "")
            assert done.stderr.startswith(f"triojam: https://{web}/metrics: ")
            assert done.stderr.endswith(end)
            assert done.stderr.count("\n") == 1
        done = await run(*words, *trust, *user, TRIOJAM_METRICS_PASSWORD="hunter3")
        assert done.stderr == f"triojam: https://{web}/metrics: does not accept the password of ada\n"
        done = await run(*words, *trust, *user, TRIOJAM_METRICS_PASSWORD="hunter2")
        assert (done.returncode, done.stderr) == (0, "")
        assert "The balance closes." in done.stdout
        done = await run(*words, *trust, *user, "--metrics-password-file", str(password))
        assert (done.returncode, done.stderr) == (0, "")
        assert "hunter" not in done.stdout + json_file.read_text("utf-8")
        done = await run(*words[:4], "--metrics", f"https://ada:hunter2@{web}")
        assert (done.returncode, done.stdout) == (2, "")
        assert "--metrics-user" in done.stderr
        assert "hunter" not in done.stderr


async def test_load_reports_a_restart() -> None:
    """A restart is reported with the lost requests; the status is 1."""
    async with serving() as first:
        port, web = str(first.address[1]), str(first.web[1])
        words = ["load", at(first.address), "--requests=12000", "--rate=2000", "--metrics", at(first.web)]
        async with launched([*COMMAND, *words], {}, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            await asked(first, 100)
            first.process.kill()
            await first.process.wait()
            async with serving(ports=("--host", "127.0.0.1", "--port", port, "--metrics-port", web)):
                printed = (await receive_all(process.stdout)).decode()
                assert await process.wait() == 1
    assert re.search(r"failed +[1-9]\d*  (reset|closed) ", printed)
    (lost,) = re.findall(
        r"The server was restarted once: ([\d,]+) requests? (?:is|are) in no reading", printed
    )
    numbers = {
        line.split()[0]: int(line.split()[1].replace(",", ""))
        for line in printed.splitlines()
        if line.startswith(("sent", "server"))
    }
    assert int(lost.replace(",", "")) == numbers["sent"] - numbers["server"] > 0


BAD: list[tuple[Behaviour, str]] = [
    (silent, "said nothing for 0.3 s without an answer"),
    (closes_at_once, "the connection"),
    (says(b"JAM 12:3", then_closes=True), "after part of an answer, 'JAM 12:3'"),
    (says(b"JAM 99:00:00\r\n"), "answered with 'JAM 99:00:00', which is no time of day"),
    (says(b"what?\r\n"), "answered with something else: 'what?'"),
    (says(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "speaks HTTP, not TIME"),
    (says(b"\x15\x03\x03\x00\x02\x02\n"), "speaks TLS"),
]


@pytest.mark.parametrize(("behaviour", "words"), BAD)
async def test_load_names_what_a_bad_server_does(
    nursery: trio.Nursery, behaviour: Behaviour, words: str
) -> None:
    """A server that breaks the protocol gives one line that says how; the status is 1."""
    address = at(await start_bad(nursery, behaviour))
    done = await run("load", address, *FAST)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"triojam: {address}: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    nursery.cancel_scope.cancel()


async def test_load_counts_resets(nursery: trio.Nursery) -> None:
    """Resets are named and counted; the status is 1."""
    address = await start_bad(nursery, tells(lambda: time.time() - time.timezone, resets_every=10))
    done = await run("load", at(address), "--requests", "1000", "--connections", "1", TZ="UTC")
    assert done.returncode == 1
    assert re.search(r"failed +100  reset 100\n", done.stdout)
    nursery.cancel_scope.cancel()


async def test_load_refuses_unreadable_metrics(nursery: trio.Nursery) -> None:
    """Without readable metrics of a server, load ends with one line before it starts."""
    async with serving() as program:
        for metrics, words in (("127.0.0.1:1", "Connection refused"), (at(program.address), "")):
            done = await run("load", at(program.address), "--metrics", metrics)
            assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
            assert f"triojam: http://{metrics}/metrics: " in done.stderr
            assert words in done.stderr


async def test_load_shows_progress_on_a_terminal_only() -> None:
    """A terminal on stderr gets a bar with rate, errors and p99; stdout gets only the result."""
    async with serving() as program:
        ours, theirs = pty.openpty()
        async with launched(
            [*COMMAND, "load", at(program.address), "--duration", "1.2"],
            {"TERM": "xterm"},
            stdout=theirs,
            stderr=theirs,
        ) as process:
            os.close(theirs)
            drawn = await everything(trio.lowlevel.FdStream(ours))
            assert await process.wait() == 0
    assert re.search(rb"/s  0 failed  p50 [\d.]+ [\xc2\xb5m]+s  p99 [\d.]+ [\xc2\xb5m]+s", drawn)
    assert b"sent " in drawn


@pytest.mark.parametrize("command", ["ask", "watch", "load", "lab"])
async def test_help_has_three_examples(command: str) -> None:
    """`--help` shows three whole commands."""
    done = await run(command, "--help")
    assert done.returncode == 0
    _, _, examples = done.stdout.partition("Examples:")
    lines = [line.strip() for line in examples.splitlines() if line.strip()]
    assert len(lines) == 3
    assert all(line.startswith(f"triojam {command}") for line in lines)


async def test_watch_shows_answers_without_markup(nursery: trio.Nursery) -> None:
    """An answer cannot style or break the table; IPv6 addresses are shown whole."""
    address = at(await start_bad(nursery, says(b"[/red][bold]hi\r\n")))
    ours, theirs = pty.openpty()
    words = ["watch", address, "[abcd::1]:7", "--count", "1", *FAST]
    variables = {"TERM": "xterm", "COLUMNS": "150"}
    async with launched([*COMMAND, *words], variables, stdout=theirs) as process:
        os.close(theirs)
        drawn = await everything(trio.lowlevel.FdStream(ours))
        assert await process.wait() == 1
    assert b"'[/red][bold]hi'" in drawn
    assert b"[abcd::1]:7" in drawn
    nursery.cancel_scope.cancel()


async def test_watch_ends_with_its_reader() -> None:
    """When its output is no longer read, watch ends without a traceback."""
    async with serving() as program:
        watching = f"{sys.executable} -m triojam watch {at(program.address)} --interval 0.01 | head -2"
        done = await trio.run_process(["sh", "-c", watching], capture_stdout=True, capture_stderr=True)
        assert (done.stdout.count(b"\n"), done.stderr) == (2, b"")


async def test_ask_replaces_characters_that_the_output_does_not_have() -> None:
    """If the encoding has no ±, ask prints an escape instead."""
    async with serving() as program:
        done = await run("ask", at(program.address), PYTHONIOENCODING="ascii")
        assert (done.returncode, done.stderr) == (0, "")
        assert " \\xb1 " in done.stdout


@pytest.mark.parametrize("option", ["--json", "--plot"])
async def test_load_refuses_files_that_cannot_be_written(option: str, tmp_path: Path) -> None:
    """Before the load, one line names a file that cannot be written."""
    file = tmp_path / "nowhere" / "result.svg"
    done = await run("load", "127.0.0.1:1", option, str(file))
    assert (done.returncode, done.stdout) == (2, "")
    expected = "a file that can be written (no such file or directory)"
    assert done.stderr == f"triojam: invalid value '{file}' for {option}: expected {expected}\n"


async def test_second_interrupt_ends_load_with_its_result(nursery: trio.Nursery) -> None:
    """A second Ctrl-C does not wait for answers; the result is printed."""
    heard = 0
    both = trio.Event()

    async def answers_once(stream: trio.abc.Stream) -> None:
        nonlocal heard
        async for _ in stream:
            heard += 1
            if heard == 1:
                now = time.gmtime()
                await stream.send_all(f"JAM {now.tm_hour:02}:{now.tm_min:02}:{now.tm_sec:02}\r\n".encode())
            else:
                both.set()

    address = at(await start_bad(nursery, answers_once))
    words = ["load", address, "--connections", "3", "--timeout", "60"]
    async with launched([*COMMAND, *words], {"TZ": "UTC"}, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with trio.fail_after(PATIENCE):
            await both.wait()
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGINT)
            printed = (await receive_all(process.stdout)).decode()
            assert await process.wait() == 130
    assert re.search(r"failed +3  interrupted 3\n", printed)
    nursery.cancel_scope.cancel()


async def test_load_refuses_metrics_that_are_not_numbers(nursery: trio.Nursery) -> None:
    """Metrics with NaN give one line, not a traceback."""
    body = b"triojam_requests_total NaN\n"
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    metrics = at(await start_bad(nursery, says(reply, then_closes=True)))
    async with serving() as program:
        done = await run("load", at(program.address), "--metrics", metrics)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    nursery.cancel_scope.cancel()
