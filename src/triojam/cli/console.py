"""The console of every command."""

from rich import console


class Console(console.Console):
    """A console that lets BrokenPipeError pass: rich would end the program with status 1, in any task."""

    def on_broken_pipe(self) -> None:
        """Raise the error again; it is being handled here."""
        raise  # noqa: PLE0704  # see the docstring
