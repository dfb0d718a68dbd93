"""The process around a server."""

import resource

import pytest

from triojam.daemon import _raise_descriptor_limit


@pytest.mark.parametrize(
    "failure", [PermissionError(1, "not permitted"), ValueError("beyond the system's limit")]
)
def test_a_refused_descriptor_limit_is_no_reason_to_fail(
    failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sandbox, or a system whose hard limit is no limit, keeps the limit as it is."""

    def refuse(*_: object) -> None:
        raise failure

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert _raise_descriptor_limit() == before[0]
