"""The state of the kernel's clock, and what happens if the kernel does not give it."""

import sys

import pytest

from triojam.web import kernel_clock
from triojam.web.kernel_clock import KernelClock, read_kernel_clock


class FakeLibrary:
    """A C library with a fake adjtimex."""

    def __init__(self, state: int, status: int, offset: int) -> None:
        self.state = state
        self.values = {"status": status, "offset": offset, "maxerror": 1500}

    def adjtimex(self, reference: object) -> int:
        """Fill in the structure; the call must not set anything."""
        asked = reference._obj  # type: ignore[attr-defined]  # of ctypes.byref
        assert asked.modes == 0
        for name, value in self.values.items():
            setattr(asked, name, value)
        return self.state


ANSWERS: list[tuple[int, int, int, KernelClock | None]] = [
    (0, 0x2001, 250_000, KernelClock(synchronized=True, max_error=0.0015, offset=0.00025, leap_state=0)),
    (0, 0x0001, 250, KernelClock(synchronized=True, max_error=0.0015, offset=0.00025, leap_state=0)),
    (1, 0x2001, 0, KernelClock(synchronized=True, max_error=0.0015, offset=0, leap_state=1)),
    (0, 0x2040, 0, KernelClock(synchronized=False, max_error=0.0015, offset=0, leap_state=0)),
    (5, 0x2040, 0, KernelClock(synchronized=False, max_error=0.0015, offset=0, leap_state=0)),
    (-1, 0, 0, None),
]  # fmt: skip


@pytest.mark.parametrize(("state", "status", "offset", "said"), ANSWERS)
def test_adjtimex_answers_are_read(
    state: int, status: int, offset: int, said: KernelClock | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Status bits, units and the leap state are those of adjtimex(2); after an error there is no answer."""
    monkeypatch.setattr(kernel_clock, "_library", lambda: FakeLibrary(state, status, offset))
    assert read_kernel_clock() == (said and pytest.approx(said))


def test_systems_without_adjtimex_give_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without adjtimex there is no answer."""
    monkeypatch.setattr(kernel_clock, "_library", object)
    assert read_kernel_clock() is None
    monkeypatch.setattr(sys, "platform", "darwin")
    assert read_kernel_clock() is None


@pytest.mark.skipif(sys.platform != "linux", reason="adjtimex is Linux's")
def test_this_machine_gives_plausible_values() -> None:
    """The layout of the structure is that of the kernel: the values are plausible, if there are any."""
    if (said := read_kernel_clock()) is not None:
        assert 0 <= said.max_error <= 20
        assert abs(said.offset) <= 0.5
        assert 0 <= said.leap_state <= 4
