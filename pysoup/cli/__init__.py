"""The ``pysoup`` command: arguments in, one library call, a few lines out.

Exit codes: 0 done; 1 something is wrong with the input, the output or the installation, said in one line on stderr;
2 the command was used wrongly; 130 interrupted.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence

from .._version import __version__

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with ``argv`` (default: ``sys.argv[1:]``) and return its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if args == ["--version"]:
        # Answered before the argument parser is imported: scripts ask this often.
        print(f"pysoup {__version__}")
        return 0
    for stream in (sys.stdout, sys.stderr):
        # A file name that the terminal's encoding cannot show must not turn a report into a traceback.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has left (`pysoup inspect ... | head`). Nothing is wrong, and nobody reads a message. The unwritten
        # rest would raise again at exit.
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.close()
        return 1
    return code


def _run(args: list[str]) -> int:
    import click

    from ..errors import SoupError
    from .app import app

    try:
        # Not app.main(): that turns an interrupt and a closed pipe into answers of its own.
        with app.make_context("pysoup", args) as context:
            app.invoke(context)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BrokenPipeError:
        raise
    except SoupError as error:
        _say(f"error: {error}")
        return 1
    except OSError as error:
        _say(f"error: {error.filename or 'system'}: {error.strerror or error}")
        return 1
    except MemoryError:
        _say("error: out of memory; a smaller --memory or fewer --threads may help")
        return 1
    return 0


def _say(text: str) -> None:
    print(f"pysoup: {text}", file=sys.stderr)
