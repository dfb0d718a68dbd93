"""The one place where everything is wired: settings become listeners, a handler, counters and a web listener.

The nurseries lie within each other in the order in which things stop: the time listeners first, then
the clients, then the probes, and the web listener last, so that the drain can be watched.

One module of more than 300 lines: the start and the stop are one order, to be read from top to bottom.
"""

import secrets
import socket
import ssl
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from ipaddress import ip_address
from typing import Any, cast

import trio
from structlog.typing import FilteringBoundLogger

from triojam.core.reasons import Listener, Reload, SelfCheck, WebRejection
from triojam.core.seldom import Seldom
from triojam.errors import ConfigurationError
from triojam.process.announcements import (
    announce_reload,
    announce_start,
    warn_of_certificates,
    watch_certificates,
)
from triojam.process.logs import LoggerFactory, make_library_logger
from triojam.process.self_check import OwnClient
from triojam.process.sockets import Sockets, addresses, connection_limit, open_sockets
from triojam.process.systemd import Passed, ServiceManager
from triojam.process.watchers import give_back_memory, report_traffic, watch_clock, watch_lag
from triojam.serving.clock import Clock
from triojam.serving.fast_lane import LANE_AVAILABLE, FastLane
from triojam.serving.handler import Handler
from triojam.serving.listeners import ClientListener, DrainingListener, accept_until
from triojam.serving.service import Change, Service, prepare_change
from triojam.serving.tls import HANDSHAKES_AT_ONCE, TlsListener
from triojam.settings.fields import Settings
from triojam.settings.files import Files, cannot_be_read, load_files
from triojam.settings.zones import reload_system_zone
from triojam.version import __version__
from triojam.web.kernel_clock import read_kernel_clock
from triojam.web.metrics import CountersCollector, make_registry
from triojam.web.page.live_page import LivePage
from triojam.web.passwords import Passwords

# How long all files of a reload may take to be read.
READ_SECONDS = 10.0
# A client may cause the same line again and again.
LOG_SECONDS = 10.0


class Server:
    """A server that has its listening sockets, and then serves on them.

    addresses, tls_addresses, metrics_addresses: (host, port) of each listening socket, with the real port
        where the settings say 0.
    """

    def __init__(  # noqa: PLR0913  # everything is wired here
        self,
        settings: Settings,
        sockets: Sockets,
        files: Files,
        *,
        shared: Collection[str],
        manager: ServiceManager,
        make_logger: LoggerFactory,
        log_messages_dropped: Callable[[], int],
        now: Callable[[], float],
    ) -> None:
        self.addresses = addresses(sockets.time)
        self.tls_addresses = addresses(sockets.tls)
        self.metrics_addresses = addresses(sockets.web)
        self._settings = settings
        self._make_logger = make_logger
        self._clock = Clock(zone=files.zone, now=now)
        self._service = Service.of(settings, jam=self._clock.jam, log=make_logger(settings.log_level))
        self.counters = self._service.counters
        self._handler = Handler(self._service)
        self.counters.connections_limit = connection_limit(settings.max_connections)
        self._sockets = sockets
        self._files = files
        self._passwords = Passwords(files.hashes, key=secrets.token_bytes(32))
        self._shared = shared  # the listeners whose sockets another process also has
        self._manager = manager
        self._own_client = OwnClient(self.addresses, self._service.admission.own)
        self._listeners: list[DrainingListener] = []
        self._lane: FastLane | None = None
        collector = CountersCollector(
            self.counters,
            clock=now,
            kernel_clock=read_kernel_clock,
            log_messages_dropped=log_messages_dropped,
            client_table_evictions=lambda: self._service.admission.evictions,
            certificate_ends=self.certificate_ends,
            version=__version__,
        )
        self._registry = make_registry(collector)
        self._live_page = LivePage(
            collector.read,
            not_ready=self.not_ready,
            zone=lambda: self._files.zone,
            listeners={"time": self.addresses, "TLS": self.tls_addresses, "metrics": self.metrics_addresses},
            version=__version__,
        )
        self._reading = trio.CapacityLimiter(1)  # threads that read the files of a reload
        self._web_failures = Seldom(LOG_SECONDS)
        self._drain_asked = trio.Event()
        self._accept_no_more = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus["Server"] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until drained. Reports itself once all listeners accept."""
        web_may_stop = trio.Event()
        for missed in self._sockets.missed:
            self._log.warning("not listening on an address", **missed._asdict())
        try:
            async with trio.open_nursery() as web_nursery:
                if self._sockets.web:
                    await web_nursery.start(self._serve_web, web_may_stop)
                async with trio.open_nursery() as probes:
                    probes.start_soon(watch_lag, self.counters)
                    probes.start_soon(watch_clock, self.counters, self._clock.now)
                    probes.start_soon(self._live_page.run)
                    probes.start_soon(report_traffic, self.counters, lambda: self._log)
                    probes.start_soon(give_back_memory, self.counters)
                    probes.start_soon(self._handler.keep_time)
                    probes.start_soon(watch_certificates, self._look_at_certificates)
                    await self._serve_clients(probes, task_status)
                    probes.cancel_scope.cancel()
                web_may_stop.set()
        finally:
            self._own_client.close()
            self._sockets.close()
        self._log.info("stopped", **self.counters.totals())

    def drain(self) -> None:
        """Begin to stop: not ready, then the lame duck delay, then no new clients, then the grace time."""
        self._drain_asked.set()

    async def reload_from(self, read: Callable[[], Settings]) -> None:
        """Apply settings that are read anew, with all files that they name, outside of the event loop.

        read: is called in another thread.

        Raises ConfigurationError, whatever goes wrong: the old settings stay. That is logged and counted.
        """
        try:
            # A thread that has not ended in time keeps its place: no second one comes beside it.
            with trio.move_on_after(READ_SECONDS) as reading:
                change = await trio.to_thread.run_sync(
                    lambda: self._prepare(read()), abandon_on_cancel=True, limiter=self._reading
                )
            if not reading.cancelled_caught:
                self._apply(change)
                return
            why = f"the settings and their files were not read within {READ_SECONDS:g} s"
            failure = ConfigurationError(why)
        except ConfigurationError as exc:
            failure = exc
        except Exception as exc:  # noqa: BLE001  # whatever stands in a file, and whatever kind it is of
            failure = cannot_be_read(exc)
        self.counters.config_reloads[Reload.FAILURE] += 1
        self._log.error("settings not reloaded, the old ones stay", reason=str(failure))
        raise failure

    def reload(self, settings: Settings) -> None:
        """Apply settings, and the files that they name, to lines, waits and handshakes to come.

        Raises ConfigurationError for a file that cannot be used; then nothing has changed.
        """
        self._apply(self._prepare(settings))

    def _prepare(self, settings: Settings) -> Change:
        return prepare_change(settings, self._settings, self._files)

    def _apply(self, change: Change) -> None:
        settings, files = change.settings, change.files
        self._settings = settings
        self._files = files
        self._passwords.replace(files.hashes)
        if files.zone is None:
            reload_system_zone()
        self._clock.set_zone(files.zone)
        self._service.log = self._make_logger(settings.log_level)
        self._service.apply(settings, change.policy)
        self._handler.settings_changed()
        if self._service.admission.limits_sources:
            self._handler.enter_sources()
            if self._lane is not None:
                self._lane.enter_sources()
        self.counters.connections_limit = connection_limit(settings.max_connections)
        self.counters.config_reloads[Reload.SUCCESS] += 1
        announce_reload(
            self._log, change.changed, change.need_restart, files, self.counters.connections_limit
        )
        self._look_at_certificates()

    def not_ready(self) -> str | None:
        """Return why new clients should go elsewhere, or None."""
        if self.counters.draining:
            return "draining"
        return None if self.counters.ready else "starting"

    def certificate_ends(self) -> Mapping[Listener, float]:
        """Return when the certificate of each listener that uses TLS ends, in seconds since the epoch."""
        return self._files.certificate_ends()

    async def _serve_clients(self, probes: trio.Nursery, task_status: trio.TaskStatus["Server"]) -> None:
        async with trio.open_nursery() as clients:
            async with trio.open_nursery() as accepting:
                self._listeners = self._make_listeners()
                for listener in self._listeners:
                    accept = partial(
                        accept_until, self._accept_no_more, listener, self._handler.handle, clients
                    )
                    await accepting.start(accept)
                if self._lane is not None:
                    probes.start_soon(self._lane.watch)
                self.counters.ready = True
                announce_start(
                    self._log,
                    time=self.addresses,
                    tls=self.tls_addresses,
                    metrics=self.metrics_addresses,
                    files=self._files,
                    connections_limit=self.counters.connections_limit,
                    version=__version__,
                )
                self._look_at_certificates()
                task_status.started(self)
                self._manager.ready()
                probes.start_soon(self._manager.attend, self._answers_itself, self.counters.totals)
                await self._drain_asked.wait()
                # From here on everything has an end, whatever the clients do.
                lame_duck, grace = self._settings.lame_duck, self._settings.grace
                ends = clients.cancel_scope.deadline = trio.current_time() + lame_duck + grace
                self._manager.stopping()
                self.counters.ready = False
                self.counters.draining = True
                self._log.info(
                    "draining: not ready",
                    lame_duck=lame_duck,
                    sentence=f"stopping: the clients ({self.counters.connections_open:,} connected) have up "
                    f"to {lame_duck + grace:g} s; a second Ctrl-C ends at once",
                )
                await trio.sleep(lame_duck)
                self._handler.drain(ends)
                self._accept_no_more.set()
            self._log.info(
                "draining: no new clients", connections=self.counters.connections_open, grace=grace
            )
        self._log.info("draining: no clients left")

    def _make_listeners(self) -> list[DrainingListener]:
        turn = trio.CapacityLimiter(HANDSHAKES_AT_ONCE)
        listeners: list[DrainingListener] = [
            TlsListener(
                # A refused client of TLS gets no text: that would need a handshake, which costs too much.
                ClientListener(_plain(sock), self._service, tell=False, shared="tls" in self._shared),
                lambda: cast(ssl.SSLContext, self._files.contexts.time),
                turn,
            )
            for sock in self._sockets.tls
        ]
        sockets = [_plain(sock) for sock in self._sockets.time]
        shared = "time" in self._shared
        if self._settings.fast_lane and LANE_AVAILABLE:
            self._lane = FastLane(sockets, self._service, shared=shared)
            return [self._lane, *listeners]
        return [*(ClientListener(sock, self._service, shared=shared) for sock in sockets), *listeners]

    async def _answers_itself(self, within: float) -> bool:
        result, reason = await self._own_client.ask(within)
        if self.counters.draining:  # it may have closed its port
            return False
        self.counters.self_checks[result] += 1
        if reason:
            self._log.warning("no answer from itself, the watchdog is not fed", reason=reason)
        return result is SelfCheck.SUCCESS

    async def _serve_web(self, may_stop: trio.Event, *, task_status: trio.TaskStatus[Any]) -> None:
        from triojam.web import auth, http_server, routes  # noqa: PLC0415  # not for those without it

        in_clear = self._files.contexts.web is None and not all(
            ip_address(address[0]).is_loopback for address in self.metrics_addresses
        )
        if self._passwords and in_clear:
            self._log.warning("passwords for the metrics listener cross the network in clear, without TLS")
        answers = routes.Routes(
            registry=self._registry,
            not_ready=self.not_ready,
            page=self._live_page,
            names=routes.own_names(f"{self._settings.metrics_host},{self._settings.metrics_names}"),
        )
        guarded = auth.BasicAuth(
            answers.answer, passwords=self._passwords, counters=self.counters, log=lambda: self._log
        )
        web = http_server.HttpServer(
            guarded.answer,
            reject=self._reject_web,
            failed=self._web_failed,
            tls=lambda: self._files.contexts.web,
        )
        await web.serve([_plain(sock) for sock in self._sockets.web], stop=may_stop, task_status=task_status)

    def _reject_web(self, reason: WebRejection) -> None:
        self.counters.web_rejected[reason] += 1

    def _web_failed(self) -> None:
        if failures := self._web_failures.count(trio.current_time()):
            self._log.exception("web request failed", failures=failures)

    def _look_at_certificates(self) -> None:
        warn_of_certificates(self._files, self._clock.now(), self._log)

    @property
    def _log(self) -> FilteringBoundLogger:
        return self._service.log


def _plain(sock: trio.socket.SocketType) -> socket.socket:
    return socket.socket(fileno=sock.detach())


async def serve(
    settings: Settings,
    *,
    make_logger: LoggerFactory = make_library_logger,
    log_messages_dropped: Callable[[], int] = int,
    now: Callable[[], float] = time.time,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `Server.drain` has been called and has done its work.

    Reports the `Server` once all listeners accept; cancelling stops at once and cleans up everything.

    make_logger: by default, events go to the standard library's logger "triojam".
    now: the wall clock, in seconds since the epoch.

    Raises, before anything is served, ListenError, or SettingError for a host that does not exist or a file
    that cannot be used.
    """
    server = await open_server(
        settings, make_logger=make_logger, log_messages_dropped=log_messages_dropped, now=now
    )
    await server.run(task_status=task_status)


async def open_server(  # noqa: PLR0913  # everything is wired here
    settings: Settings,
    *,
    make_logger: LoggerFactory,
    log_messages_dropped: Callable[[], int],
    now: Callable[[], float] = time.time,
    passed: Passed | None = None,
    manager: ServiceManager | None = None,
) -> Server:
    """Open the sockets of all listeners, and put a server together. Raises what `serve` raises.

    passed: sockets that stand in for those of the settings.
    """
    files = load_files(settings)
    passed = passed or {}
    sockets = await open_sockets(
        host=settings.host,
        port=settings.port,
        tls_port=settings.tls_port,
        metrics_host=settings.metrics_host,
        metrics_port=settings.metrics_port,
        passed=passed,
    )
    return Server(
        settings,
        sockets,
        files,
        shared=passed.keys(),
        manager=manager or ServiceManager(),
        make_logger=make_logger,
        log_messages_dropped=log_messages_dropped,
        now=now,
    )
