"""The command line: ``consecution run | plan | status | ...``. One file per command."""

from __future__ import annotations

import argparse
import os
import select
import sys
import traceback

import consecution
from consecution.cli import (
    backup,
    completion,
    doctor,
    drain,
    failed,
    init,
    journal,
    logs,
    pause,
    plan,
    restore,
    resume,
    run,
    state,
    status,
    stop,
    top,
)
from consecution.cli.outside import escape_what_it_cannot_take
from consecution.errors import ConsecutionError

COMMANDS = (
    init,
    run,
    plan,
    status,
    top,
    stop,
    drain,
    pause,
    resume,
    logs,
    journal,
    state,
    failed,
    backup,
    restore,
    doctor,
    completion,
)
"""In the order of the help."""
EXIT_USAGE = 2
EXIT_PIPE = 141


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code.

    0 all completed, 1 some failed, 2 usage or an error of whatever kind, 3 work pending.
    """
    parser = make_parser()
    arguments = parser.parse_args(argv)
    try:
        if arguments.command is not run.run:  # there it belongs to the nodes first
            escape_what_it_cannot_take(sys.stdout)
        code: int = arguments.command(arguments)
        _flush()
        return code
    except ConsecutionError as error:
        notes = "\n".join(getattr(error, "__notes__", ()))
        print(f"consecution: {error}".rstrip() + (f"\n{notes}" if notes else ""), file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        return _end_with(error)
    except Exception:  # the interpreter would exit with 1, which says that items have failed
        traceback.print_exc()
        return EXIT_USAGE


def _end_with(error: OSError) -> int:
    """The exit code; the error is that of standard output, or else what somebody's code has raised."""
    if isinstance(error, BrokenPipeError) and _nobody_reads_it():
        _let_go_of_output()  # whoever read it has seen enough (`| head`)
        return EXIT_PIPE
    if not isinstance(error, BrokenPipeError) and _is_stuck():
        print(
            f"consecution: standard output cannot be written: {error.strerror or error}; what it holds is not whole: "
            "make room, or send it elsewhere",
            file=sys.stderr,
        )
        _let_go_of_output()
        return EXIT_USAGE
    traceback.print_exception(error)
    return EXIT_USAGE


def _flush() -> None:
    """Nothing where standard output was closed from the start (``>&-``): there is no object for it then."""
    print(end="", flush=True)


def _nobody_reads_it() -> bool:
    """Whether standard output is a pipe, or a socket, whose other end is closed."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # it has no descriptor
        return False


def _is_stuck() -> bool:
    """Whether standard output holds what cannot be written: the error that ended a command is its own."""
    try:
        _flush()
    except OSError:
        return True
    return False


def _let_go_of_output() -> None:
    """The interpreter's last flush must not fail, too."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="consecution", description="Stream processing in Python: every item is completely processed."
    )
    parser.add_argument("--version", action="version", version=f"consecution {consecution.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.add_parser(commands)
    return parser
