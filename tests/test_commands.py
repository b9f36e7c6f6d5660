"""A command ends with an exit code and at most one line on stderr."""

import pytest

from corpus.commands import run_command


def fail(error):
    raise error


@pytest.mark.parametrize(
    ("action", "code", "line"),
    [
        (lambda: None, 0, ""),
        (lambda: fail(ValueError("two\nlines \x1b[31m")), 2, "music: two lines \\x1b[31m\n"),
        (lambda: fail(OSError("no such file")), 2, "music: no such file\n"),
        (lambda: fail(KeyboardInterrupt()), 130, "music: stopped early\n"),
    ],
    ids=["success", "control characters", "missing file", "Ctrl-C"],
)
def test_a_mistake_ends_in_one_printable_line(action, code, line, capsys):
    assert run_command("music", action, "stopped early") == code
    assert capsys.readouterr().err == line


def test_a_bug_keeps_its_traceback():
    with pytest.raises(RuntimeError):
        run_command("music", lambda: fail(RuntimeError("a bug")))
