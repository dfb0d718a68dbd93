"""What the commands of every side have in common."""

from collections.abc import Callable

from cyclopts import App, Parameter

from triojam.version import __version__

# Functions that return an exit status, each with the arguments of three examples.
Commands = dict[Callable[..., int], tuple[str, str, str]]


def _positive(_type: type, value: float | None) -> None:
    if value is not None and not value > 0:
        raise ValueError("It takes a number above 0.")


def _not_negative(_type: type, value: float) -> None:
    if not value >= 0:
        raise ValueError("It takes 0 or more.")


Positive = Parameter(validator=_positive)
NotNegative = Parameter(validator=_not_negative)


def make_app_of(commands: Commands) -> App:
    """Make an application that has only these commands."""
    app = App(
        name="triojam",
        version=__version__,
        exit_on_error=False,
        print_error=False,
        result_action="return_value",
    )
    register_all(app, commands)
    return app


def register_all(app: App, commands: Commands) -> None:
    """Add commands to an application."""
    for command, examples in commands.items():
        # Their own config: what configures a server is not for them.
        epilogue = "\n".join(
            ["Examples:", "", *(f"    triojam {command.__name__} {each}" for each in examples)]
        )
        app.command(command, config=(), help_epilogue=epilogue)
