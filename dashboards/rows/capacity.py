"""The rows about capacity and about the use of the machine."""

from grafana_foundation_sdk.models import units

from dashboards.panels import AnyPanel, lines
from dashboards.queries import CHOSEN, FULLNESS, HERE, MOST_LINES, WINDOW, largest, rate, ratio
from dashboards.style import AMBER, FULLNESS_STEPS, GREY, PER_SECOND, PURPLE, RED

LARGEST = f"Of more than {MOST_LINES} servers, those with the largest values."


def capacity() -> list[AnyPanel]:
    """Make the panels about capacity."""
    return [
        lines(
            "Connections and their limit",
            "Open connections and their limit, as the sum of all selected servers.",
            {
                "open": f"sum(triojam_connections_open{CHOSEN})",
                "limit": f"sum(triojam_connections_limit{CHOSEN})",
            },
            unit=units.Short,
            color={"open": PURPLE, "limit": GREY},
            width=8,
        ),
        lines(
            "Share of the limit in use",
            "Open connections as a share of the limit, for each server. At 100 %, the server refuses new "
            f"clients. {LARGEST}",
            {HERE: largest(FULLNESS)},
            unit=units.PercentUnit,
            color=PURPLE,
            steps=FULLNESS_STEPS,
            most=1,
            width=8,
        ),
        lines(
            "New connections",
            "Accepted connections, including refused ones. A client that connects for each request costs "
            "much more than a client that keeps its connection.",
            {"accepted": rate("triojam_connections_total")},
            unit=PER_SECOND,
            color=PURPLE,
            width=8,
        ),
        lines(
            "Fast lane hand-overs, by cause",
            "Clients that the fast lane handed over to their own task. line: a bad line or QUIT; send: the "
            "answers did not fit into the kernel's buffer; timeout, eof: an incomplete line; drain: the "
            "server stops; rate: the source sent more than it may; header: a PROXY header came late. Many "
            "hand-overs make the server slower.",
            {"{{cause}}": rate("triojam_lane_handovers_total", "cause")},
            unit=PER_SECOND,
            color=PURPLE,
            stacked=True,
        ),
        lines(
            "Failed accepts, by errno",
            "EMFILE: the process has no file descriptors left; ENFILE: the machine has none left. "
            "ECONNABORTED: the client closed the connection before the accept. other: any other errno, which "
            "is in the log.",
            {"{{errno}}": rate("triojam_accept_errors_total", "errno")},
            unit=PER_SECOND,
            color=RED,
            stacked=True,
        ),
    ]


def cost() -> list[AnyPanel]:
    """Make the panels about the use of the machine."""
    cpu = "process_cpu_seconds_total"
    return [
        lines(
            "CPU",
            f"CPU use of each process. A server has one event loop, so 100 % is its maximum. {LARGEST}",
            {HERE: largest(f"rate({cpu}{CHOSEN}[{WINDOW}])")},
            unit=units.PercentUnit,
            color=GREY,
            steps=FULLNESS_STEPS,
            width=8,
        ),
        lines(
            "Memory",
            f"Resident memory of each process. {LARGEST}",
            {HERE: largest(f"process_resident_memory_bytes{CHOSEN}")},
            unit=units.BytesIEC,
            color=GREY,
            width=8,
        ),
        lines(
            "File descriptors",
            "Open file descriptors of each process, and the lowest limit of the selected processes. Every "
            f"connection uses one. {LARGEST}",
            {
                HERE: largest(f"process_open_fds{CHOSEN}"),
                "lowest limit": f"min(process_max_fds{CHOSEN})",
            },
            unit=units.Short,
            color={HERE: PURPLE, "lowest limit": RED},
            width=8,
        ),
        lines(
            "CPU time per request",
            "CPU time of all selected processes, divided by their requests. With few requests, most of it "
            "is the base load of the process.",
            {"per request": ratio(rate(cpu), rate("triojam_requests_total"))},
            unit=units.Seconds,
            color=GREY,
            width=8,
        ),
        lines(
            "Garbage collections, by generation",
            "Runs of Python's garbage collector. Runs of the last generation are slow and should be rare.",
            {"generation {{generation}}": rate("python_gc_collections_total", "generation")},
            unit=PER_SECOND,
            color=GREY,
            width=8,
        ),
        lines(
            "Garbage",
            "Objects found by Python's garbage collector. collected: they were part of a cycle; "
            "uncollectable: a leak.",
            {
                "collected": rate("python_gc_objects_collected_total"),
                "uncollectable": rate("python_gc_objects_uncollectable_total"),
            },
            unit=PER_SECOND,
            color={"collected": GREY, "uncollectable": AMBER},
            width=8,
        ),
    ]
