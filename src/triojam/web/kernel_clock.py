"""The state of the kernel's clock: read with adjtimex(2), which sets nothing here."""

import ctypes
import sys
from functools import cache
from typing import NamedTuple

# Bits of `status` (linux/timex.h): not synchronized; offsets in nanoseconds instead of microseconds.
_STA_UNSYNC = 0x0040
_STA_NANO = 0x2000
# States that adjtimex returns: no leap second is near; the clock is not synchronized.
_TIME_OK, _TIME_ERROR = 0, 5


class KernelClock(NamedTuple):
    """The state of the clock. max_error: in seconds. offset: the correction not yet made, in seconds.

    leap_state: 0 none, 1 a second will be inserted, 2 deleted, 3 insertion in progress, 4 over.
    """

    synchronized: bool
    max_error: float
    offset: float
    leap_state: int


class _Timex(ctypes.Structure):
    _fields_ = (
        ("modes", ctypes.c_uint),
        *((name, ctypes.c_long) for name in ("offset", "freq", "maxerror", "esterror")),
        ("status", ctypes.c_int),
        *((name, ctypes.c_long) for name in ("constant", "precision", "tolerance", "sec", "usec", "tick")),
        *((name, ctypes.c_long) for name in ("ppsfreq", "jitter")),
        ("shift", ctypes.c_int),
        *((name, ctypes.c_long) for name in ("stabil", "jitcnt", "calcnt", "errcnt", "stbcnt")),
        ("tai", ctypes.c_int),
        ("reserved", ctypes.c_int * 11),
    )


def read_kernel_clock() -> KernelClock | None:
    """Ask the kernel; return None on another system, or in a sandbox that forbids the call."""
    if sys.platform != "linux":
        return None
    asked = _Timex()
    try:
        state: int = _library().adjtimex(ctypes.byref(asked))
    except (OSError, AttributeError):
        return None
    if state < 0:
        return None
    unit = 1e-9 if asked.status & _STA_NANO else 1e-6
    return KernelClock(
        synchronized=state != _TIME_ERROR and not asked.status & _STA_UNSYNC,
        max_error=asked.maxerror * 1e-6,
        offset=asked.offset * unit,
        leap_state=_TIME_OK if state == _TIME_ERROR else state,
    )


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
