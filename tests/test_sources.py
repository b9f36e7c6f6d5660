"""Sources: which files are found, which split each belongs to, and what is said when it is not the right data."""

import csv
import os
import shutil
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from corpus.sources import Maestro, MidiFolder, PassedOver, Piece

SPLIT_OF = {"2004/first.midi": "train", "2004/second.midi": "test", "2018/third.midi": "validation"}


@pytest.fixture(params=["maestro-v2.0.0", "maestro-v3.0.0"])
def unpacked(request, tmp_path):
    """The published layout, with bytes in the place of music."""
    folder = tmp_path / "unpacked" / request.param
    for name in SPLIT_OF:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(f"music of {name}".encode() * 1000)
    (folder / "LICENSE").touch()
    (folder / f"{request.param}.json").touch()
    with (folder / f"{request.param}.csv").open("w", encoding="utf-8", newline="") as lines:
        table = csv.DictWriter(lines, ["canonical_composer", "canonical_title", "split", "midi_filename", "duration"])
        table.writeheader()
        for name, split in SPLIT_OF.items():
            row = {"canonical_composer": "Frédéric Chopin", "canonical_title": 'Étude, "Winter"', "split": split}
            table.writerow({**row, "midi_filename": name, "duration": 10.0})
    return folder


@pytest.fixture
def archive(unpacked, tmp_path):
    return shutil.make_archive(tmp_path / "archive", "zip", unpacked.parent)


def rewrite_table(unpacked, change):
    table = unpacked / f"{unpacked.name}.csv"
    table.write_text(change(table.read_text(encoding="utf-8")), encoding="utf-8")


def test_maestro_keeps_the_official_split(unpacked):
    source = Maestro(unpacked)
    assert (source.name, len(source)) == (unpacked.name, 3)
    assert {piece.name: piece.split for piece in source} == SPLIT_OF
    assert next(iter(source)).midi == b"music of 2004/first.midi" * 1000


def test_maestro_is_the_same_from_the_archive_the_folder_and_the_folder_above(unpacked, archive):
    assert list(Maestro(archive)) == list(Maestro(unpacked)) == list(Maestro(unpacked.parent))
    assert list(Maestro(archive)) == list(Maestro(shutil.make_archive(unpacked.parent / "flat", "zip", unpacked)))


def test_a_file_that_the_archive_lacks_is_passed_over(unpacked):
    (unpacked / "2004/second.midi").unlink()
    archive = shutil.make_archive(unpacked.parent / "lacking", "zip", unpacked)
    for path in (unpacked, archive):
        first, second, third = Maestro(path)
        assert isinstance(first, Piece)
        assert isinstance(third, Piece)
        assert isinstance(second, PassedOver)
        assert second.name == "2004/second.midi"
        assert second.reason


def test_a_file_that_the_archive_holds_damaged_is_passed_over(archive):
    with zipfile.ZipFile(archive) as opened:
        (info,) = (info for info in opened.infolist() if info.filename.endswith("second.midi"))
    with Path(archive).open("r+b") as damaged:
        damaged.seek(info.header_offset + 30 + len(info.filename) + info.compress_size // 2)
        damaged.write(b"\0\xff\0\xff")
    outcomes = {file.name: type(file) for file in Maestro(archive)}
    assert outcomes == {"2004/first.midi": Piece, "2004/second.midi": PassedOver, "2018/third.midi": Piece}


def test_what_is_not_maestro_is_refused(unpacked, archive, tmp_path):
    with pytest.raises(ValueError, match=r"missing\.zip does not exist"):
        Maestro(tmp_path / "missing.zip")
    with pytest.raises(ValueError, match="neither a folder nor a zip archive"):
        Maestro(unpacked / "LICENSE")
    with pytest.raises(ValueError, match="holds no maestro csv"):
        Maestro(shutil.make_archive(tmp_path / "other", "zip", unpacked / "2004"))
    shutil.copytree(unpacked, unpacked.with_name("maestro-v1.0.0"))
    with pytest.raises(ValueError, match="one version of MAESTRO"):
        Maestro(unpacked.parent)


def test_a_table_that_does_not_tell_the_split_is_refused(unpacked):
    rewrite_table(unpacked, lambda text: text.replace(",validation,", ",dev,"))
    with pytest.raises(ValueError, match=r"\['dev'\].*'validation'"):
        Maestro(unpacked)
    rewrite_table(unpacked, lambda text: text.replace("midi_filename", "file"))
    with pytest.raises(ValueError, match="columns midi_filename and split"):
        Maestro(unpacked)
    rewrite_table(unpacked, lambda text: "")
    with pytest.raises(ValueError, match="columns midi_filename and split"):
        Maestro(unpacked)


def fill(folder, contents):
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_a_folder_is_searched_to_its_depths_for_mid_and_midi_in_any_case(tmp_path):
    names = ["a.mid", "B.MIDI", "deep/er/c.Mid", "ünï cödé/d.midi"]
    fill(tmp_path, {name: name.encode() for name in [*names, "notes.txt", "song.mid.bak", "mid"]})
    (tmp_path / "a folder.mid").mkdir()
    source = MidiFolder(tmp_path)
    assert [(piece.name, piece.midi) for piece in source] == [(name, name.encode()) for name in sorted(names)]
    assert len(source) == 4


def test_the_split_of_a_file_depends_on_its_content_alone(tmp_path):
    contents = {f"{number}.mid": b"content %d" % number for number in range(100)}
    before = {piece.midi: piece.split for piece in MidiFolder(fill(tmp_path / "one", contents))}
    renamed = {f"deeper/other {name}": content for name, content in contents.items()}
    added = {f"new/{number}.midi": b"more %d" % number for number in range(50)}
    after = {piece.midi: piece.split for piece in MidiFolder(fill(tmp_path / "two", renamed | added))}
    assert len(after) == 150
    assert before.items() <= after.items()


def test_a_folder_is_split_90_to_5_to_5(tmp_path):
    fill(tmp_path, {f"{number}.mid": b"%d" % number for number in range(2000)})
    counts = Counter(piece.split for piece in MidiFolder(tmp_path))
    # Three standard deviations of 2000 draws.
    assert abs(counts["train"] - 1800) < 41
    assert abs(counts["validation"] - 100) < 30
    assert abs(counts["test"] - 100) < 30


def test_of_files_with_the_same_content_the_first_counts(tmp_path):
    fill(tmp_path, {"b.mid": b"same", "a/z.mid": b"same", "c.mid": b"other", "d.midi": b"same"})
    assert [file.name for file in MidiFolder(tmp_path) if isinstance(file, Piece)] == ["a/z.mid", "c.mid"]
    doubles = [file for file in MidiFolder(tmp_path) if isinstance(file, PassedOver)]
    assert doubles == [PassedOver(name, "the same content as a/z.mid") for name in ("b.mid", "d.midi")]


def test_a_file_that_cannot_be_read_is_passed_over(tmp_path):
    fill(tmp_path, {"a.mid": b"music", "c.mid": b"more music"})
    (tmp_path / "b.mid").symlink_to(tmp_path / "gone.mid")
    assert [type(file) for file in MidiFolder(tmp_path)] == [Piece, PassedOver, Piece]
    assert PassedOver("b.mid", "No such file or directory") in list(MidiFolder(tmp_path))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names themselves")
def test_a_file_name_that_is_no_text_becomes_text(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.mid")).write_bytes(b"music")
    (piece,) = MidiFolder(tmp_path)
    assert piece.name == "caf\N{REPLACEMENT CHARACTER}.mid"


def test_a_folder_without_midi_files_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not a folder"):
        MidiFolder(tmp_path / "missing")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"holds no \.mid or \.midi file"):
        MidiFolder(tmp_path)
