"""Text from outside, such as file names and titles, made safe for a terminal and for Markdown; and lines printed."""

import os
import re
import sys


def printable(text: object) -> str:
    r"""Escape control characters, among them those that move a terminal's cursor or change its colours.

    Characters that cannot be printed become Python's escapes, such as `\x1b`; so do the bytes of a file name that is
    not UTF-8.
    """
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(text))


def print_line(line: str) -> bool:
    """Print a line, safe for a terminal, at once; return False if nobody reads it any more, as after `| head`."""
    try:
        print(printable(line), flush=True)
    except BrokenPipeError:
        # What Python still holds back would fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def escape_markdown(text: object) -> str:
    """Escape what Markdown and HTML give a meaning, on one line."""
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", printable(text)).replace("&", "&amp;").replace("<", "&lt;")
