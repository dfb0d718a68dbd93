"""The receiver of the lab's alerts: what Alertmanager sends becomes a line for each alert."""

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from triojam import webserver

PATH = "/alerts"


async def receive(host: str, say: Callable[[str], None], *, task_status: trio.TaskStatus[str]) -> None:
    """Say each alert that fires or resolves, until cancelled. Reports the URL at which it is told them."""
    said: dict[str, tuple[str, str]] = {}

    async def alerts(request: Request) -> Response:
        try:
            told = [(_identity(each), render(each)) for each in (await request.json())["alerts"]]
        except (json.JSONDecodeError, UnicodeDecodeError, LookupError, TypeError, AttributeError):
            return PlainTextResponse("this is for Alertmanager's webhook\n", 400)
        for (fingerprint, state), line in told:
            if said.get(fingerprint) != state:  # it is told again when an answer is lost, or after a day
                said[fingerprint] = state
                say(line)
        return PlainTextResponse("ok\n")

    sockets = [each.socket for each in await trio.open_tcp_listeners(0, host=host)]
    port = sockets[0].getsockname()[1]

    async def serve(*, task_status: trio.TaskStatus[None]) -> None:
        await webserver.serve(
            Starlette(routes=[Route(PATH, alerts, methods=["POST"])]),
            sockets,
            stop=trio.Event(),
            error_log=logging.getLogger("triojam.lab"),
            task_status=task_status,
        )

    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        task_status.started(f"http://{host}:{port}{PATH}")


def render(alert: Mapping[str, Any]) -> str:
    """Return an alert as one line."""
    labels, annotations = alert["labels"], alert["annotations"]
    state = "FIRING" if alert["status"] == "firing" else "resolved"
    parts = (labels["alertname"], labels.get("severity", ""), annotations.get("summary", ""))
    return " ".join(f"{state:8} {'  '.join(filter(None, parts))}".split("\n"))


def _identity(alert: Mapping[str, Any]) -> tuple[str, tuple[str, str]]:
    return alert["fingerprint"], (alert["status"], alert["startsAt"])
