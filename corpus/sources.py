"""The sources of pieces, and the split of each piece.

A source has a `name`, a `licence` and a length. It iterates over its files in an order that depends on their names and
contents alone, and yields each file as a `Piece`, or as `PassedOver` if it cannot be used. Validation and test pieces
come first, so that a duplicate is removed from the training split. Sources read bytes and do not parse MIDI.
"""

import csv
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from huggingface_hub import cached_assets_path

from corpus.dataset import load_corpus
from corpus.download import download
from corpus.splits import HELD_OUT, SPLITS, TEST_SHARE, VALIDATION_SHARE
from tokenization.chorales import VOICES, steps_to_score
from tokenization.midi_reader import MAX_BYTES, MIDI_SUFFIXES

# What reading a damaged, encrypted, vanished or forbidden file raises, from a disk or from an archive.
UNREADABLE = (OSError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)


@dataclass(frozen=True)
class Piece:
    """One file of music.

    Args:
        name: Unique within the source.
        split: One of SPLITS.
        music: The bytes of a MIDI file, or ids without BOS and EOS.
        composer: As written in the source; empty if unknown.
        title: Likewise.
        weight: How often an epoch of training visits it.
    """

    name: str
    split: str
    music: bytes | np.ndarray
    composer: str = ""
    title: str = ""
    weight: float = 1.0


@dataclass(frozen=True)
class PassedOver:
    """One file that was left out, and why."""

    name: str
    reason: str


class Maestro:
    """MAESTRO, every published version: performances of a piano competition, recorded as MIDI.

    The files are read from the published archive, or from a folder where it was unpacked. The csv in it names them and
    gives the official split.

    Args:
        path: `maestro-v3.0.0-midi.zip`, or a folder with the csv in it or one level below; None to download.
        version: The version to download, a key of ARCHIVES.

    Raises:
        ValueError: There is nothing at the path, or not MAESTRO; or no such version.
        OSError: It could not be downloaded.

    Source:
        Hawthorne et al. 2019, arXiv 1810.12247; https://magenta.tensorflow.org/datasets/maestro
    """

    licence = "cc-by-nc-sa-4.0"

    # Address and SHA-256 of each version.
    ARCHIVES = {
        f"v{version}": (
            f"https://storage.googleapis.com/magentadata/datasets/maestro/v{version}/maestro-v{version}-midi.zip",
            sha256,
        )
        for version, sha256 in {
            "2.0.0": "ec2cc9d94886c6b376db1eaa2b8ad1ce62ff9f0a28b3744782b13163295dadf3",
            "3.0.0": "70470ee253295c8d2c71e6d9d4a815189e35c89624b76d22fce5a019d5dde12c",
        }.items()
    }

    def __init__(self, path: str | Path | None = None, version: str = "v3.0.0"):
        if path is None:
            if version not in self.ARCHIVES:
                raise ValueError(f"version ({version}) must be one of {', '.join(self.ARCHIVES)}.")
            path = download(*self.ARCHIVES[version], cached_assets_path("music-tx", "maestro"))
        self.files = _Files(path)
        tables = [
            file
            for file in map(PurePosixPath, self.files.names)
            if len(file.parts) <= 2 and file.name.startswith("maestro") and file.suffix == ".csv"
        ]
        if len(tables) != 1:
            found = " and ".join(sorted(table.name for table in tables)) or "no maestro csv"
            raise ValueError(f"{path} holds {found}; give one version of MAESTRO, such as maestro-v3.0.0-midi.zip.")
        self.name, self.folder = tables[0].stem, tables[0].parent
        self.rows = _rows(self.files.read(str(tables[0])), f"{path}: {tables[0].name}", ("midi_filename", "split"))

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Piece | PassedOver]:
        for row in sorted(self.rows, key=lambda row: row["split"] not in HELD_OUT):
            name, composer, title = (
                row.get(column) or "" for column in ("midi_filename", "canonical_composer", "canonical_title")
            )
            yield _piece(self.files, str(self.folder / name), name, row["split"], composer, title)


class GiantMidi:
    """GiantMIDI-Piano: recordings of ten thousand works, transcribed by a network.

    Its authors distribute it. The name of a file holds composer, title and recording. The hash of the composition's
    name decides the split, 90% train, 5% validation, 5% test, so that a composition is in one split only; titles that
    share a recording count as one composition.

    Args:
        path: The archive, or a folder where it was unpacked; the files may lie in folders in it.

    Raises:
        ValueError: There is nothing at the path, or no file of that naming.

    Source:
        Kong et al. 2020, arXiv 2010.07061; https://github.com/bytedance/GiantMIDI-Piano
    """

    name = "giantmidi-piano"
    licence = "other"

    # "Surname, First name, Title, with commas, RECORDING.mid", and the evaluation set's
    # "Surname_Title_RECORDING_cut_mov_1.mid". A recording is eleven letters, digits, hyphens and underscores.
    patterns = (
        re.compile(r"(?P<composer>[^,]+(, [^,]+)?), (?P<title>.+), (?P<recording>[\w-]{11})"),
        re.compile(r"(?P<composer>[^_]+)_(?P<title>.+?)_(?P<recording>[\w-]{11})(_a|_(cut|mov|no|part)\w*)?"),
    )

    def __init__(self, path: str | Path):
        self.files = _Files(path)
        self.names = [name for name in self.files.names if name.lower().endswith(MIDI_SUFFIXES)]
        self.parts = {name: self._parse(name) for name in self.names}
        if not any(parts["recording"] for parts in self.parts.values()):
            raise ValueError(f'{path} holds no file named as GiantMIDI-Piano does, "Composer, Title, RECORDING.mid".')
        self.composition = self._compositions()

    @classmethod
    def _parse(cls, name: str) -> dict[str, str]:
        stem = unicodedata.normalize("NFC", PurePosixPath(name).stem)
        for pattern in cls.patterns:
            if match := pattern.fullmatch(stem):
                return match.groupdict() | {"title": match["title"].replace("_", " ")}
        return {"composer": "", "title": stem, "recording": ""}

    def _compositions(self) -> dict[str, str]:
        """Join what shares its composition or its recording, and name the whole after one of its compositions.

        Returns:
            The name of each file's composition.
        """
        joined = {}

        def find(key: str) -> str:
            while key in joined:
                key = joined[key]
            return key

        keys = {}
        for name, parts in self.parts.items():
            # The evaluation set has neither accents nor periods, and seldom first names.
            keys[name] = _letters(parts["composer"].partition(",")[0] + parts["title"])
            if parts["recording"]:
                one, other = sorted((find(keys[name]), find(f"~{parts['recording']}")))
                if one != other:
                    joined[other] = one
        return {name: find(key) for name, key in keys.items()}

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Piece | PassedOver]:
        split = {name: _split(self.composition[name].encode()) for name in self.names}
        for name in sorted(self.names, key=lambda name: split[name] not in HELD_OUT):
            parts = self.parts[name]
            yield _piece(self.files, name, name, split[name], parts["composer"], parts["title"])


class JsbChorales:
    """Bach's four-part chorales on a grid of sixteenth notes, in the split of Boulanger-Lewandowski et al. 2012.

    Args:
        path: `Jsb16thSeparated.json`: for every split a list of chorales, a chorale a list of steps, a step the pitch
            of soprano, alto, tenor and bass, -1 where a voice is silent.

    Raises:
        ValueError: There is no such file, or it holds something else.

    Source:
        https://github.com/czhuangusc/JSB-Chorales-dataset
    """

    name = "jsb-chorales"
    licence = "other"

    def __init__(self, path: str | Path):
        wanted = f"{path} does not hold chorales: give Jsb16thSeparated.json, whose steps tell all four voices."
        try:
            chorales = json.loads(Path(path).read_bytes())
            by_split = {split: chorales[split] for split in ("valid", "test", "train")}
            self.chorales = [
                (f"{split}/{number:03}", split.replace("valid", "validation"), np.array(steps))
                for split, chorales in by_split.items()
                for number, steps in enumerate(chorales)
            ]
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {_reason(error)}.") from None
        except (ValueError, TypeError, KeyError, RecursionError):
            raise ValueError(wanted) from None
        for _, _, steps in self.chorales:
            # Whole numbers that fit 64 bits: of others NumPy makes an array of another type.
            is_grid = steps.dtype == np.int64 and steps.ndim == 2 and steps.shape[1] == len(VOICES)
            if not is_grid or not -1 <= steps.min() <= steps.max() <= 127:
                raise ValueError(wanted)

    def __len__(self) -> int:
        return len(self.chorales)

    def __iter__(self) -> Iterator[Piece]:
        for name, split, steps in self.chorales:
            yield Piece(name, split, steps_to_score(steps).dumps_midi(), composer="Johann Sebastian Bach")


class MidiFolder:
    """A folder of one's own, or an archive: every file of MIDI_SUFFIXES in it, gzipped or not, however deep.

    The content of a file decides its split, 90% train, 5% validation, 5% test, so that adding, moving and renaming
    files never moves a piece into another split.

    Args:
        path: The folder or the zip archive.
        metadata: A csv with the column `file_name`, relative to the folder, and any of `split`, `composer` and
            `title`. A split that it gives counts; where it gives none, the content decides.
        validation_share: The share of the files for validation, about: what is more is taken from the train split.

    Raises:
        ValueError: There is no such folder, no MIDI file in it, the metadata do not fit, or the share is not between
            0 and 0.95.
    """

    licence = "other"
    suffixes = MIDI_SUFFIXES

    def __init__(
        self,
        path: str | Path,
        metadata: str | Path | None = None,
        validation_share: float = VALIDATION_SHARE,
    ):
        if not 0 < validation_share < 1 - TEST_SHARE:
            raise ValueError(f"validation_share ({validation_share}) must be more than 0 and less than 0.95.")
        self.validation_share = validation_share
        self.files = _Files(path)
        self.name = Path(path).resolve().stem
        self.names = [name for name in self.files.names if name.lower().removesuffix(".gz").endswith(self.suffixes)]
        if not self.names:
            raise ValueError(f"{path} holds no {', '.join(self.suffixes)} file, however deep.")
        self.metadata = {}
        if metadata is not None:
            try:
                table = Path(metadata).read_bytes()
            except OSError as error:
                raise ValueError(f"{metadata} cannot be read: {_reason(error)}.") from None
            self.metadata = {row["file_name"]: row for row in _rows(table, metadata, ("file_name",))}
            if not self.metadata.keys() & set(self.names):
                raise ValueError(f"{metadata} names no file of {path}; file_name is relative to the folder.")

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Piece | PassedOver]:
        # The split of a file without a given one depends on its content. Such files are read twice, because keeping
        # them until their turn would take as much memory as the folder.
        for held_out in (True, False):
            for name in self.names:
                row = self.metadata.get(name, {})
                given = row.get("split")
                if given and (given in HELD_OUT) != held_out:
                    continue
                composer, title = row.get("composer") or "", row.get("title") or ""
                file = _piece(self.files, name, name, given, composer, title, self.validation_share)
                if given or held_out == (isinstance(file, Piece) and file.split in HELD_OUT):
                    yield file


class Mixture:
    """Prepared corpora as one source: pieces that one corpus holds out are left out of training in all.

    Args:
        corpora: Folders that `prepare` wrote, with their weights: how often an epoch of training visits each.

    Raises:
        ValueError: A weight is not positive, or two corpora have one name.
        FileNotFoundError: A folder is no prepared corpus.
    """

    licence = "other"

    def __init__(self, corpora: dict[str, float]):
        for folder, weight in corpora.items():
            if not 0 < weight < float("inf"):
                raise ValueError(
                    f"{folder} has the weight {weight}; weights are positive, 0.5 visits every other time."
                )
        self.corpora = {Path(folder).resolve().name: (load_corpus(folder), corpora[folder]) for folder in corpora}
        if len(self.corpora) != len(corpora):
            raise ValueError(f"{', '.join(corpora)}: their last names must differ, for they go before the pieces'.")
        self.name = ",".join(f"{name}={weight:g}" for name, (_, weight) in self.corpora.items())

    def __len__(self) -> int:
        return sum(len(rows) for corpus, _ in self.corpora.values() for rows in corpus.values())

    def __iter__(self) -> Iterator[Piece]:
        for split in (*HELD_OUT, "train"):
            for name, (corpus, weight) in self.corpora.items():
                for row in corpus[split].with_format("numpy"):
                    yield Piece(
                        f"{name}/{row['name']}",
                        split,
                        row["input_ids"][1:-1],
                        str(row.get("composer", "")),
                        str(row.get("title", "")),
                        weight * float(row.get("weight", 1)) if split == "train" else 1.0,
                    )


class _Files:
    """The files below a folder or in a zip archive: their names in order, and their bytes."""

    def __init__(self, path: str | Path):
        path = Path(path)
        if path.is_dir():
            self.archive, self.path = None, path
            self.names = sorted(
                Path(folder, file).relative_to(path).as_posix() for folder, _, files in os.walk(path) for file in files
            )
        elif zipfile.is_zipfile(path):
            try:
                self.archive = zipfile.ZipFile(path)
            # NotImplementedError: a version that Python does not support; ValueError: a name that is no text.
            except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
                raise ValueError(f"{path} is a zip archive that cannot be read: {error}.") from None
            self.names = sorted(info.filename for info in self.archive.infolist() if not info.is_dir())
        elif path.exists():
            raise ValueError(f"{path} is neither a folder nor a zip archive.")
        else:
            raise ValueError(f"{path} does not exist.")
        self._known = frozenset(self.names)

    def read(self, name: str) -> bytes:
        """Return what a file holds, unpacked if it is gzipped; raises one of UNREADABLE."""
        if name not in self._known:
            # Also a name that a table gives and that leads out of the folder.
            raise FileNotFoundError("not in the archive" if self.archive else "not in the folder")
        # To open a named pipe would wait for a writer.
        if self.archive is None and not stat.S_ISREG((self.path / name).stat().st_mode):
            raise OSError("no regular file")
        opened = self.archive.open(name) if self.archive else (self.path / name).open("rb")
        with opened as raw, gzip.open(raw) if name.lower().endswith(".gz") else raw as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise OSError(f"more than {MAX_BYTES // 1_000_000} MB, and so no music")
        return content


def _piece(
    files: _Files,
    file: str,
    name: str,
    split: str | None,
    composer: str,
    title: str,
    validation_share: float = VALIDATION_SHARE,
) -> Piece | PassedOver:
    """Read a file; its content decides its split where none is given."""
    # A name may hold bytes that are no text.
    name = os.fsencode(name).decode(errors="replace")
    try:
        midi = files.read(file)
    except UNREADABLE as error:
        return PassedOver(name, _reason(error))
    return Piece(name, split or _split(midi, validation_share), midi, composer, title)


def _split(content: bytes, validation_share: float = VALIDATION_SHARE) -> str:
    """Choose a split by the hash of a content, read as a share of 1."""
    share = int.from_bytes(hashlib.sha256(content).digest()[:8], "big") / 2**64
    held_out = round(1 - TEST_SHARE - validation_share, 9)  # 0.9, and not the float below it
    return "train" if share < held_out else "validation" if share < 1 - TEST_SHARE else "test"


def _rows(table: bytes, what: str | Path, columns: Iterable[str]) -> list[dict[str, str]]:
    """Read a csv, and check its columns and splits."""
    try:
        rows = list(csv.DictReader(io.StringIO(table.decode("utf-8-sig"), newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{what} is no csv in UTF-8: {error}.") from None
    if not rows or not set(columns) <= rows[0].keys():
        raise ValueError(f"{what} has no rows with the columns {' and '.join(columns)}.")
    unknown = {row["split"] for row in rows if row.get("split")} - set(SPLITS)
    if unknown:
        raise ValueError(f"{what} has the splits {sorted(unknown)}; known are {list(SPLITS)}.")
    return rows


def _letters(text: str) -> str:
    """The letters and digits of a text, without accents and in lower case."""
    return "".join(letter for letter in unicodedata.normalize("NFKD", text).lower() if letter.isalnum())


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
