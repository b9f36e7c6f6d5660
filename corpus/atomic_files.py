"""Files and folders that appear whole or not at all, and their checksums."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a folder to fill that replaces `path` on success and is removed on failure.

    Args:
        path: The folder to write. While it is being written, it is a hidden folder beside this one.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        shutil.rmtree(path, ignore_errors=True)
        unfinished.replace(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)  # on a full disk, this frees the space again


def write_atomically(path: Path, text: str) -> None:
    """Write a text file that replaces `path` in one step; its folder is created if it does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def flush_to_disk(path: Path) -> None:
    """Wait until the disk holds a file's contents, so that a power failure cannot lose them."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
