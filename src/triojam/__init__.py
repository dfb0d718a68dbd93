"""triojam: a time server over TCP. `TIME` in, `JAM hh:mm:ss` out, every request accounted for.

async with trio.open_nursery() as nursery:
    server = await nursery.start(triojam.serve, triojam.Settings(port=0))
    print(server.addresses, server.metrics_addresses)
"""

from triojam.app import ListenError, Server, serve
from triojam.settings import SettingError, Settings
from triojam.version import __version__

__all__ = ["ListenError", "Server", "SettingError", "Settings", "__version__", "serve"]
