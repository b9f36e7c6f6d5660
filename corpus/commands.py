"""How commands begin and end: the parser of the command line; one line and an exit code instead of a traceback."""

import argparse
import sys
from collections.abc import Callable

from corpus.plain_text import printable


def make_parser(module: str, documentation: str) -> argparse.ArgumentParser:
    """Make the parser of a command, without flags.

    Args:
        module: The command's module, which `python -m` starts.
        documentation: Its docstring; the first line tells what the command does.
    """
    return argparse.ArgumentParser(prog=f"python -m {module}", description=documentation.splitlines()[0])


def run_command(name: str, action: Callable[[], None], stopped: str = "stopped") -> int:
    """Run what a command does after its flags are parsed.

    Args:
        name: The command, which its messages begin with.
        action: OSError and ValueError from it are mistakes of the user.
        stopped: The message after Ctrl-C.

    Returns:
        The exit code: 0, 2 after a mistake of the user, or 130 after Ctrl-C.
    """
    try:
        action()
    except (OSError, ValueError) as error:
        print(printable(f"{name}: {' '.join(str(error).split())}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: {stopped}", file=sys.stderr)
        return 130
    return 0
