"""triojam: a time server over TCP. `TIME` in, `JAM hh:mm:ss` out, every request accounted for.

    async with trio.open_nursery() as nursery:
        server = await nursery.start(triojam.serve, triojam.Settings(port=0))
        print(server.addresses, server.metrics_addresses)
        print(await triojam.ask("localhost"))

The names are imported when they are first used: the command line must be able to obey Ctrl-C before.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from triojam.client.ask import ask
    from triojam.client.session import (
        Answer,
        AskError,
        ClosedError,
        RefusedError,
        SilentError,
        StrangerError,
        UnreachableError,
        UntrustedError,
        WrongTimeError,
    )
    from triojam.errors import ListenError
    from triojam.server import Server, serve
    from triojam.settings.fields import SettingError, Settings
    from triojam.version import __version__

__all__ = [
    "Answer",
    "AskError",
    "ClosedError",
    "ListenError",
    "RefusedError",
    "Server",
    "SettingError",
    "Settings",
    "SilentError",
    "StrangerError",
    "UnreachableError",
    "UntrustedError",
    "WrongTimeError",
    "__version__",
    "ask",
    "serve",
]

_HOMES = dict.fromkeys(__all__, "client.session") | {
    "ListenError": "errors",
    "Server": "server",
    "SettingError": "settings.fields",
    "Settings": "settings.fields",
    "__version__": "version",
    "ask": "client.ask",
    "serve": "server",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'triojam' has no attribute {name!r}")
    return getattr(importlib.import_module(f"triojam.{_HOMES[name]}"), name)
