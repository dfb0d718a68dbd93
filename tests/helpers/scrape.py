"""An HTTP client for the web listener, and the counters of a scrape."""

import http.client
from contextlib import closing
from dataclasses import dataclass
from email.message import Message
from functools import partial
from types import MappingProxyType

import trio
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.helpers.servers import PATIENCE

Address = tuple[str, int]
NO_HEADERS: MappingProxyType[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Reply:
    """An HTTP response."""

    status: int
    headers: Message
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()


@dataclass(frozen=True)
class Scrape:
    """The samples of one scrape."""

    samples: list[Sample]

    def total(self, name: str, **labels: str) -> float:
        """Add up the series with this name and these labels; there must be at least one."""
        found = [
            each.value for each in self.samples if each.name == name and labels.items() <= each.labels.items()
        ]
        assert found, f"no series {name} {labels}"
        return sum(found)

    @property
    def unaccounted(self) -> float:
        """The number of requests without a result yet."""
        return (
            self.total("triojam_requests_total")
            - self.total("triojam_responses_total")
            - self.total("triojam_rejected_total")
            - self.total("triojam_response_send_errors_total")
        )


async def fetch(
    address: Address, path: str, *, method: str = "GET", headers: MappingProxyType[str, str] = NO_HEADERS
) -> Reply:
    """Send one HTTP request on a new connection."""
    return await trio.to_thread.run_sync(partial(_fetch, address, path, method, headers))


def _fetch(address: Address, path: str, method: str, headers: MappingProxyType[str, str]) -> Reply:
    with closing(http.client.HTTPConnection(*address, timeout=PATIENCE)) as connection:
        connection.request(method, path, headers=dict(headers))
        response = connection.getresponse()
        return Reply(response.status, response.headers, response.read())


async def scrape(address: Address) -> Scrape:
    """Read every sample from a web listener."""
    reply = await fetch(address, "/metrics")
    assert reply.status == 200
    return Scrape(
        [sample for family in text_string_to_metric_families(reply.text) for sample in family.samples]
    )


async def balanced_at(address: Address) -> None:
    """Wait until all connections have ended, then check that the counters balance."""
    with trio.fail_after(PATIENCE):
        while (seen := await scrape(address)).total("triojam_connections_open"):  # noqa: ASYNC110  # another process sets no Event
            await trio.sleep(0.01)
    assert seen.unaccounted == 0
    admitted = seen.total("triojam_connections_total") - seen.total("triojam_connections_rejected_total")
    assert seen.total("triojam_disconnects_total") == admitted
