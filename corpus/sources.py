"""Where pieces come from, and which split each belongs to.

A source has a `name` and a length, and iterates over its files in an order that only their names and contents decide:
each file as a `Piece`, or as `PassedOver` where there is nothing to learn from it. It knows files, not music.
"""

import csv
import hashlib
import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SPLITS = ("train", "validation", "test")

# What reading a damaged, encrypted, vanished or forbidden file raises, from a disk or from an archive.
UNREADABLE = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Piece:
    """One file of music: its name within the source, its split, and its bytes."""

    name: str
    split: str
    midi: bytes


@dataclass(frozen=True)
class PassedOver:
    """One file that was left out, and why."""

    name: str
    reason: str


class Maestro:
    """MAESTRO, every published version: ten years of a piano competition, played on pianos that record the keys.

    Read straight from the published archive, or from a folder where it was unpacked. The csv that lies with the music
    names the files and gives the official split.

    Licence: CC BY-NC-SA 4.0.

    Args:
        path: `maestro-v3.0.0-midi.zip`, or a folder with the csv in it or one level below.

    Raises:
        ValueError: There is nothing at the path, or not MAESTRO.

    Source:
        Hawthorne et al. 2019, arXiv 1810.12247; https://magenta.tensorflow.org/datasets/maestro
    """

    def __init__(self, path: str | Path):
        table = self._find_table(_opened(Path(path)), path)
        self.name, self.folder = Path(table.name).stem, table.parent
        with table.open(encoding="utf-8", newline="") as lines:
            self.rows = list(csv.DictReader(lines))
        columns = set(self.rows[0]) if self.rows else set()
        if not columns >= {"midi_filename", "split"}:
            raise ValueError(f"{path}: {table.name} has no rows with the columns midi_filename and split.")
        unknown = {row["split"] for row in self.rows} - set(SPLITS)
        if unknown:
            raise ValueError(f"{path}: {table.name} has the splits {sorted(unknown)}; known are {list(SPLITS)}.")

    @staticmethod
    def _find_table(root: Path | zipfile.Path, path: str | Path) -> Path | zipfile.Path:
        folders = [root, *(child for child in root.iterdir() if child.is_dir())]
        tables = [
            child
            for folder in folders
            for child in folder.iterdir()
            if child.name.startswith("maestro") and child.name.endswith(".csv")
        ]
        if len(tables) != 1:
            found = " and ".join(sorted(table.name for table in tables)) or "no maestro csv"
            raise ValueError(f"{path} holds {found}; give one version of MAESTRO, such as maestro-v3.0.0-midi.zip.")
        return tables[0]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Piece | PassedOver]:
        for row in self.rows:
            try:
                midi = (self.folder / row["midi_filename"]).read_bytes()
            except UNREADABLE as error:
                yield PassedOver(row["midi_filename"], _reason(error))
            else:
                yield Piece(row["midi_filename"], row["split"], midi)


class MidiFolder:
    """A folder of one's own: every .mid and .midi file in it, however deep.

    The content of a file decides its split, 90% train, 5% validation, 5% test, so that adding, moving and renaming
    files never moves a piece into another split. Of files with the same content the first one by name counts.

    Args:
        path: The folder.

    Raises:
        ValueError: There is no such folder, or no MIDI file in it.
    """

    name = "folder"
    suffixes = (".mid", ".midi")

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_dir():
            raise ValueError(f"{path} is not a folder; give the folder that your MIDI files are in.")
        files = (file for file in self.path.rglob("*") if file.suffix.lower() in self.suffixes and not file.is_dir())
        self.files = sorted(files, key=lambda file: file.relative_to(self.path).as_posix())
        if not self.files:
            raise ValueError(f"{path} holds no {' or '.join(self.suffixes)} file, however deep.")

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[Piece | PassedOver]:
        first_with = {}
        for file in self.files:
            # A name may hold bytes that are no text.
            name = os.fsencode(file.relative_to(self.path).as_posix()).decode(errors="replace")
            try:
                midi = file.read_bytes()
            except UNREADABLE as error:
                yield PassedOver(name, _reason(error))
                continue
            digest = hashlib.sha256(midi).digest()
            if digest in first_with:
                yield PassedOver(name, f"the same content as {first_with[digest]}")
                continue
            first_with[digest] = name
            yield Piece(name, self._split(digest), midi)

    @staticmethod
    def _split(digest: bytes) -> str:
        """Read the digest as a share of 1."""
        share = int.from_bytes(digest[:8], "big") / 2**64
        return "train" if share < 0.9 else "validation" if share < 0.95 else "test"


def _opened(path: Path) -> Path | zipfile.Path:
    """A folder, or the root of an archive, behind the same interface."""
    if path.is_dir():
        return path
    if not path.exists():
        raise ValueError(f"{path} does not exist.")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is neither a folder nor a zip archive.")
    return zipfile.Path(path)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
