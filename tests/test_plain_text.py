"""Text from outside changes neither a terminal nor a page."""

import subprocess
import sys
from pathlib import Path

import pytest

from corpus.plain_text import escape_markdown, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Étude №1 “夜”.mid", "Étude №1 “夜”.mid"),
        ("\x1b[2Jgone\r\n", r"\x1b[2Jgone\r\n"),
        ("\udcff.mid", r"\udcff.mid"),
        ("exe\u202edim", r"exe\u202edim"),
    ],
)
def test_what_a_terminal_would_obey_is_shown_as_an_escape(text, shown):
    assert printable(text) == shown


def test_markdown_and_html_are_shown_and_not_rendered():
    escaped = escape_markdown("<script>a & b</script> [x](y) | *z* `c`\n# h")
    assert escaped == r"&lt;script>a &amp; b&lt;/script> \[x\](y) \| \*z\* \`c\`\\n\# h"


def test_a_reader_that_leaves_ends_the_printing_without_a_traceback():
    code = "from corpus.plain_text import print_line\nwhile print_line('line'): pass"
    command = [sys.executable, "-c", code]
    root = Path(__file__).parents[1]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=root) as process:
        assert process.stdout.readline() == b"line\n"
        process.stdout.close()
        assert process.wait(timeout=60) == 0
        assert process.stderr.read() == b""
