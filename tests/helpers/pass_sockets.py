"""Executes a program with open sockets: `python -m tests.helpers.pass_sockets NAME=HOST -- WORDS`."""

import fcntl
import os
import socket
import sys

from triojam.process.systemd import FIRST

# Above the final numbers of the sockets.
_ELSEWHERE = 100


def main(sockets: list[str], words: list[str]) -> None:
    """Listen on a free port of each host, for :: in both families, and execute the program."""
    names, hosts = zip(*(each.split("=") for each in sockets), strict=True)
    for descriptor, host in enumerate(hosts, FIRST):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, 0), family=family, dualstack_ipv6=host == "::") as sock:
            elsewhere = fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, _ELSEWHERE)
        os.dup2(elsewhere, descriptor)
    os.environ |= {
        "LISTEN_PID": str(os.getpid()),
        "LISTEN_FDS": str(len(names)),
        "LISTEN_FDNAMES": ":".join(names),
    }
    os.execvp(words[0], words)


if __name__ == "__main__":
    end = sys.argv.index("--")
    main(sys.argv[1:end], sys.argv[end + 1 :])
