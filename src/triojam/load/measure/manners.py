"""What a server does after it has refused a line: it reads on, or it closes the connection.

A server of this protocol closes after a number of errors (its setting `error_budget`), which the client
does not know. A request that is sent while the server closes fails. So after an ERROR line the client waits
for the end, briefly, until it has seen what this server does after that number of errors.
"""

# How long to wait for the end if it is not known what the server does.
SHORT_PAUSE = 0.01
# After more errors than this, no server is expected to close.
_MOST_ERRORS = 100


class Manners:
    """What was seen of one server. patience: how long to wait for an end that is expected, in seconds."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._closes: dict[int, bool] = {}

    def pause(self, errors: int) -> float:
        """Return how long to wait for the end of a connection after this many errors, in seconds."""
        closes = self._closes.get(errors)
        if closes is None:
            return SHORT_PAUSE if errors <= _MOST_ERRORS else 0.0
        return self._patience if closes else 0.0

    def learn(self, errors: int, *, closes: bool) -> None:
        """Remember what the server has done after this many errors."""
        if errors <= _MOST_ERRORS:
            self._closes[errors] = closes
