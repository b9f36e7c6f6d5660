"""A command ends with an exit code and at most one line on stderr."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from corpus.commands import run_command

ROOT = Path(__file__).parents[1]

# Start commands one after the other, as Python starts them.
START = """
import runpy, sys
for path in sys.argv[1:]:
    sys.argv = [path, "--help"]
    try:
        runpy.run_module(path.removesuffix(".py").replace("/", "."), run_name="__main__")
    except SystemExit as end:
        assert end.code == 0, path
    assert "torch" not in sys.modules, f"{path} loads PyTorch before it answers"
"""


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


def test_every_command_answers_before_pytorch_is_loaded():
    rooms = ("corpus", "evaluation", "hub")
    files = [ROOT / "train.py", ROOT / "generate.py", *(file for room in rooms for file in (ROOT / room).glob("*.py"))]
    commands = [str(file.relative_to(ROOT)) for file in files if "sys.exit(main())" in file.read_text("utf-8")]
    assert {"train.py", "generate.py", "corpus/prepare.py", "evaluation/report.py", "hub/web.py"} <= set(commands)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", START, *commands]
    done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: ") == len(commands)
