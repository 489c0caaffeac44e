"""The command itself, without its commands."""

from __future__ import annotations

import click

from .._version import __version__


class InOrder(click.Group):
    """Lists its commands as they are defined, not by the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=InOrder,
    context_settings={"show_default": True},
    epilog="Exit codes: 0 done, 1 an error (one line on stderr), 2 wrong usage, 130 interrupted.",
)
# `pysoup --version` alone is answered in main(); this one keeps it in --help and in odd orders of arguments.
@click.version_option(__version__, message="%(prog)s %(version)s", help="Print the version and exit.")
def app() -> None:
    """Average the weights of fine-tuned models: exactly, in bounded memory, as fast as the bytes can move."""
