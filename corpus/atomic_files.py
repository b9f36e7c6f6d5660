"""Files and folders that appear whole or not at all, locks on what one process may write, and checksums."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock file inside the `with` block, so that no other process does the same work at the same time.

    The system releases the lock when the process ends, however it ends; forked processes do not inherit it. On
    Windows, and on file systems without locks, nothing is locked.

    Args:
        path: The lock file. It and its folder are created, and the file is removed in the end.

    Raises:
        BlockingIOError: Another process holds the lock; its number is in the message.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    descriptor = _lock(path)
    # The holder before may have removed the file after it was opened here.
    while not (path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())):
        os.close(descriptor)
        descriptor = _lock(path)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _lock(path: Path) -> int:
    """Open and lock a file; returns its descriptor, whose closing releases the lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        holder = os.read(descriptor, 20).decode(errors="replace")
        os.close(descriptor)
        raise BlockingIOError(f"process {holder} writes there and holds {path}; wait until it has ended") from None
    except OSError:  # a file system without locks
        pass
    return descriptor


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a folder to fill that replaces `path` on success and is removed on failure.

    Args:
        path: The folder to write. While it is being written, it is a hidden folder beside this one, named after the
            process that writes it.
    """
    remove_unfinished(path.parent)
    unfinished, replaced = (
        path.with_name(f".{path.name}.{state}-{os.getpid()}") for state in ("unfinished", "replaced")
    )
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        if path.exists():
            path.replace(replaced)
        unfinished.replace(path)
        flush_to_disk(path.parent)
    finally:
        for folder in (unfinished, replaced):
            shutil.rmtree(folder, ignore_errors=True)  # on a full disk, this frees the space again


def remove_unfinished(folder: Path) -> None:
    """Remove what processes that were killed have left in a folder; what a living process writes stays."""
    for path in folder.glob(".*-*"):
        name, _, process = path.name.rpartition("-")
        if name.endswith((".unfinished", ".replaced")) and process.isdigit() and not _is_alive(int(process)):
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


def write_atomically(path: Path, text: str) -> None:
    """Write a text file that replaces `path` in one step; its folder is created if it does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def flush_to_disk(path: Path) -> None:
    """Wait until the disk holds a file's contents, or a folder's names, so that a power failure cannot lose them."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
