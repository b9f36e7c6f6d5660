"""A file or folder appears whole or not at all, and what a killed process left is removed."""

import os
import subprocess
import sys

import pytest

from corpus.atomic_files import atomic_folder, exclusive, remove_unfinished, sha256, write_atomically


def test_a_folder_appears_when_it_is_complete_and_replaces_the_one_before(tmp_path):
    for text in ("first", "second"):
        with atomic_folder(tmp_path / "folder") as folder:
            (folder / text).write_text(text)
            assert not (tmp_path / "folder" / text).exists()
        assert [path.name for path in (tmp_path / "folder").iterdir()] == [text]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_folder_that_fails_leaves_the_one_before_and_nothing_else(tmp_path):
    with atomic_folder(tmp_path / "folder") as folder:
        (folder / "first").write_text("")
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "folder") as folder:
        (folder / "missing" / "second").write_text("")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "first"]


def test_what_a_dead_process_left_is_removed_and_what_a_living_one_writes_stays(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    (tmp_path / f".a.unfinished-{dead.stdout.strip()}").mkdir()
    (tmp_path / f".b.unfinished-{os.getpid()}").mkdir()
    (tmp_path / ".c-1").mkdir()
    remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f".b.unfinished-{os.getpid()}", ".c-1"}


HOLD = "import sys, time; from pathlib import Path; from corpus.atomic_files import exclusive\n"
HOLD += "with exclusive(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is locked there")
def test_a_lock_has_one_holder_ends_with_its_process_and_leaves_no_file(tmp_path):
    lock = tmp_path / "deep" / ".lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, lock], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match=f"process {other.pid} writes there"), exclusive(lock):
            pass
        other.kill()
    assert lock.exists()
    with exclusive(lock):
        pass
    assert not list(lock.parent.iterdir())


def test_a_file_is_replaced_in_one_step(tmp_path):
    for text in ("first", "second"):
        write_atomically(tmp_path / "deep" / "file", text)
        assert (tmp_path / "deep" / "file").read_text() == text
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file"]
    assert sha256(tmp_path / "deep" / "file").startswith("16367aac")
