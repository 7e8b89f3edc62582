"""The command ``covid-lesion-seg``: one small module a subcommand, loaded when it is called.

A command module offers ``HELP`` (one line), ``add_arguments(parser)`` and ``run(arguments) -> int`` (the exit status).
It raises the library's errors; this module turns them into one line on standard error and an exit status: 0 done, 2 bad
input or usage, 3 some of a batch failed, 130 interrupted, 143 ended by SIGTERM. Results go to standard output, progress
and logs to standard error.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from .. import __version__
from ..errors import CancelledError, COVIDLesionSegError
from ..processes import TerminatedError, ending_by_sigterm

# command -> module in this package; only the called one is imported, so that `models list` needs no PyTorch.
COMMANDS = {
    "demo": "demo",
    "sample-data": "sample_data",
    "segment": "segment",
    "evaluate": "evaluate",
    "report": "report",
    "compare-timepoints": "compare_timepoints",
    "doctor": "doctor",
    "models": "models",
    "train": "train",
    "fine-tune": "fine_tune",
    "cases": "cases",
    "pseudo-label": "pseudo_label",
    "reproduce": "reproduce",
    "worker": "worker",
}

EXIT_SOME_FAILED = 3
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

# Set to 1, it shows the trace-back of an error that nobody foresaw.
DEBUG_VARIABLE = "COVIDLESIONSEG_DEBUG"
# What input that nobody foresaw ends in; all other exceptions are mistakes of the program and keep their trace-back.
_UNFORESEEN = (MemoryError, RecursionError, ArithmeticError, ValueError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; None takes ``sys.argv``.

    Returns:
        The exit status.
    """
    for stream in (sys.stdout, sys.stderr):
        # a name that the terminal's encoding lacks must not end the command
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    argv = list(sys.argv[1:] if argv is None else argv)
    named = next((word for word in argv if word in COMMANDS), None)
    parser = _parser(named)
    arguments = parser.parse_args(argv)
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if arguments.verbose else logging.WARNING,
        format="%(levelname)s: %(message)s",
    )
    if arguments.command is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        with ending_by_sigterm():
            return _command(arguments.command).run(arguments)
    except TerminatedError:
        print("Terminated.", file=sys.stderr)
        return EXIT_TERMINATED
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return EXIT_INTERRUPTED
    except CancelledError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    except COVIDLesionSegError as error:
        if arguments.verbose:
            logging.getLogger(__name__).exception("the command failed")
        _tell_error(str(error))
        return error.exit_status
    except BrokenPipeError:
        # the reader of our output (head, less) has left: nothing to say, and nothing more may be flushed to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if arguments.verbose:
            logging.getLogger(__name__).exception("the command failed")
        _tell_error(_sentence(error))
        return 2
    except _UNFORESEEN as error:
        if arguments.verbose or os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0"):
            logging.getLogger(__name__).exception("the command failed")
        _tell_error(_unforeseen(error))
        return 2


def _command(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{COMMANDS[name]}")


def _sentence(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    return f"{reason}." if error.filename is None else f"{error.filename}: {reason}."


def _tell_error(sentence: str) -> None:
    # what a file put into it must neither break the line nor steer the terminal
    shown = "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in sentence)
    print(f"error: {shown}", file=sys.stderr)


def _unforeseen(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "There is not enough memory for this; close other programs, or give a smaller input."
    reason = next(iter(str(error).splitlines()), "")
    return (
        f"The input can't be handled: unexpected {type(error).__name__}{f' ({reason})' if reason else ''}. "
        f"Set {DEBUG_VARIABLE}=1 to see where."
    )


def _parser(named: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="covid-lesion-seg",
        description="COVID-19 pneumonia lesions in chest CT: segment, measure, learn. Research use only.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("--verbose", action="store_true", help="log what happens, and tracebacks of errors")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name in COMMANDS:
        # the other commands need their name and help only; reading them loads their module, which stays light
        module = _command(name)
        child = commands.add_parser(name, help=module.HELP, description=module.HELP)
        if name == named:
            module.add_arguments(child)
    return parser
