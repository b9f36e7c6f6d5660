"""Sources: which files are found, which split each belongs to, and what is said when it is not the right data."""

import csv
import gzip
import json
import os
import shutil
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from symusic import Score

from corpus import sources
from corpus.sources import GiantMidi, JsbChorales, Maestro, MidiFolder, PassedOver, Piece
from tokenization.chorales import score_to_steps

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
    assert {piece.name: piece.music for piece in source} == {
        name: f"music of {name}".encode() * 1000 for name in SPLIT_OF
    }


def test_maestro_is_the_same_from_the_archive_the_folder_and_the_folder_above(unpacked, archive):
    assert list(Maestro(archive)) == list(Maestro(unpacked)) == list(Maestro(unpacked.parent))
    assert list(Maestro(archive)) == list(Maestro(shutil.make_archive(unpacked.parent / "flat", "zip", unpacked)))


def test_a_file_that_the_archive_lacks_is_passed_over(unpacked):
    (unpacked / "2004/second.midi").unlink()
    archive = shutil.make_archive(unpacked.parent / "lacking", "zip", unpacked)
    for path in (unpacked, archive):
        outcomes = {file.name: file for file in Maestro(path)}
        assert outcomes.keys() == SPLIT_OF.keys()
        missing = outcomes.pop("2004/second.midi")
        assert isinstance(missing, PassedOver)
        assert missing.reason
        assert all(isinstance(file, Piece) for file in outcomes.values())


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
    names = ["a.mid", "B.MIDI", "deep/er/c.Mid", "ünï cödé/d.midi", "e.SMF", "f.kar", "g.RMI"]
    fill(tmp_path, {name: name.encode() for name in [*names, "notes.txt", "song.mid.bak", "mid"]})
    (tmp_path / "a folder.mid").mkdir()
    source = MidiFolder(tmp_path)
    assert sorted((piece.name, piece.music) for piece in source) == [(name, name.encode()) for name in sorted(names)]
    assert len(source) == 7


def test_what_is_gzipped_is_read_as_what_it_holds(tmp_path):
    fill(tmp_path, {"a.mid.gz": gzip.compress(b"music"), "B.MIDI.GZ": gzip.compress(b"more"), "c.gz": b"no music"})
    fill(tmp_path, {"broken.mid.gz": gzip.compress(b"music" * 100)[:-20], "text.mid.gz": b"text"})
    files = {file.name: file for file in MidiFolder(tmp_path)}
    assert files.pop("a.mid.gz").music == b"music"
    assert files.pop("B.MIDI.GZ").music == b"more"
    assert files.keys() == {"broken.mid.gz", "text.mid.gz"}
    assert all(isinstance(file, PassedOver) for file in files.values())


def test_the_split_of_a_gzipped_file_is_that_of_its_content(tmp_path):
    plain, zipped = tmp_path / "plain", tmp_path / "zipped"
    fill(plain, {f"{number}.mid": b"%d" % number for number in range(50)})
    fill(zipped, {f"{number}.mid.gz": gzip.compress(b"%d" % number) for number in range(50)})
    assert {piece.music: piece.split for piece in MidiFolder(plain)} == {
        piece.music: piece.split for piece in MidiFolder(zipped)
    }


def test_a_file_larger_than_music_can_be_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_BYTES", 1000)
    fill(tmp_path, {"bomb.mid.gz": gzip.compress(bytes(1001)), "large.mid": bytes(1001), "small.mid": bytes(1000)})
    assert {file.name: type(file) for file in MidiFolder(tmp_path)} == {
        "bomb.mid.gz": PassedOver,
        "large.mid": PassedOver,
        "small.mid": Piece,
    }


def test_an_archive_of_one_s_own_is_read_as_the_folder(tmp_path):
    folder = fill(tmp_path / "mine", {f"deep/{number}.mid": b"content %d" % number for number in range(30)})
    assert list(MidiFolder(shutil.make_archive(tmp_path / "mine", "zip", folder))) == list(MidiFolder(folder))


def test_what_is_held_out_comes_first_from_every_source(tmp_path, unpacked, chorales):
    own = fill(tmp_path / "own", {f"{number}.mid": b"%d" % number for number in range(100)})
    giant = fill(tmp_path / "giant", {f"Bach, Suite {number}, abcdefg{number:04}.mid": b"" for number in range(100)})
    for source in (MidiFolder(own), GiantMidi(giant), Maestro(unpacked), JsbChorales(chorales)):
        trained_on = [piece.split == "train" for piece in source]
        assert len(trained_on) == len(source)
        assert sorted(trained_on) == trained_on
        assert 0 < sum(trained_on) < len(trained_on)


def test_metadata_give_a_folder_its_splits_and_names(tmp_path):
    folder = fill(tmp_path / "own", {f"{number}.mid": b"%d" % number for number in range(20)})
    table = tmp_path / "metadata.csv"
    table.write_text(
        "\ufefffile_name,split,composer,title,year\n0.mid,test,Satie,Gnossienne,1890\n1.mid,validation,,,\n"
        "2.mid,,Liszt,,\ngone.mid,train,,,\n",
        encoding="utf-8",
    )
    plain = {piece.name: piece for piece in MidiFolder(folder)}
    (folder / "1.mid").unlink()
    (folder / "1.mid").symlink_to("nowhere")
    told = {file.name: file for file in MidiFolder(folder, table)}
    assert told.pop("0.mid") == Piece("0.mid", "test", b"0", "Satie", "Gnossienne")
    assert told.pop("2.mid") == Piece("2.mid", plain["2.mid"].split, b"2", "Liszt", "")
    assert isinstance(told.pop("1.mid"), PassedOver)
    assert told == {name: piece for name, piece in plain.items() if name not in ("0.mid", "1.mid", "2.mid")}


def test_metadata_that_do_not_fit_are_refused(tmp_path):
    folder = fill(tmp_path / "own", {"a.mid": b"music"})
    for text, complaint in [
        ("name,split\na.mid,train\n", "column"),
        ("file_name,split\na.mid,dev\n", "dev"),
        ("file_name,split\nother.mid,train\n", "names no file"),
        ("file_name\n\xff\n", "UTF-8"),
    ]:
        (tmp_path / "metadata.csv").write_text(text, encoding="latin-1")
        with pytest.raises(ValueError, match=complaint):
            MidiFolder(folder, tmp_path / "metadata.csv")
    with pytest.raises(ValueError, match="cannot be read"):
        MidiFolder(folder, tmp_path / "missing.csv")


def test_the_split_of_a_file_depends_on_its_content_alone(tmp_path):
    contents = {f"{number}.mid": b"content %d" % number for number in range(100)}
    before = {piece.music: piece.split for piece in MidiFolder(fill(tmp_path / "one", contents))}
    renamed = {f"deeper/other {name}": content for name, content in contents.items()}
    added = {f"new/{number}.midi": b"more %d" % number for number in range(50)}
    after = {piece.music: piece.split for piece in MidiFolder(fill(tmp_path / "two", renamed | added))}
    assert len(after) == 150
    assert before.items() <= after.items()


def test_a_folder_is_split_90_to_5_to_5(tmp_path):
    fill(tmp_path, {f"{number}.mid": b"%d" % number for number in range(400)})
    counts = Counter(piece.split for piece in MidiFolder(tmp_path))
    # Three standard deviations of 400 draws.
    assert abs(counts["train"] - 360) < 18
    assert abs(counts["validation"] - 20) < 13
    assert abs(counts["test"] - 20) < 13


def test_a_larger_validation_share_comes_out_of_the_train_split_alone(tmp_path):
    fill(tmp_path, {f"{i}.mid": f"piece {i}".encode() for i in range(400)})
    splits = {share: {piece.name: piece.split for piece in MidiFolder(tmp_path, None, share)} for share in (0.05, 0.3)}
    counts = Counter(splits[0.3].values())
    assert counts["validation"] == pytest.approx(120, abs=30)
    changes = {(splits[0.05][name], splits[0.3][name]) for name in splits[0.05]}
    assert changes == {("train", "train"), ("train", "validation"), ("validation", "validation"), ("test", "test")}
    for share in (0, 0.95, float("nan")):
        with pytest.raises(ValueError, match="validation_share"):
            MidiFolder(tmp_path, None, share)


def test_a_file_that_cannot_be_read_is_passed_over(tmp_path):
    fill(tmp_path, {"a.mid": b"music", "c.mid": b"more music"})
    (tmp_path / "b.mid").symlink_to(tmp_path / "gone.mid")
    files = {file.name: file for file in MidiFolder(tmp_path)}
    assert files["b.mid"] == PassedOver("b.mid", "No such file or directory")
    assert [type(files[name]) for name in ("a.mid", "c.mid")] == [Piece, Piece]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_named_pipe_is_passed_over_and_not_waited_for(tmp_path):
    fill(tmp_path, {"a.mid": b"music"})
    os.mkfifo(tmp_path / "b.mid")
    files = {file.name: file for file in MidiFolder(tmp_path)}
    assert files["b.mid"] == PassedOver("b.mid", "no regular file")
    assert isinstance(files["a.mid"], Piece)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_member_of_an_archive_costs_that_member_alone(method, tmp_path, make_score):
    with zipfile.ZipFile(tmp_path / "midis.zip", "w", method) as archive:
        for seed, name in enumerate(("a.mid", "b.mid")):
            archive.writestr(name, make_score(seed).dumps_midi())
        begin = archive.getinfo("b.mid").header_offset + 60
    content = bytearray((tmp_path / "midis.zip").read_bytes())
    content[begin : begin + 40] = bytes(byte ^ 255 for byte in content[begin : begin + 40])
    (tmp_path / "midis.zip").write_bytes(content)
    assert {file.name: type(file) for file in MidiFolder(tmp_path / "midis.zip")} == {
        "a.mid": Piece,
        "b.mid": PassedOver,
    }


def test_an_archive_of_an_unknown_version_is_refused_in_one_line(tmp_path):
    with zipfile.ZipFile(tmp_path / "midis.zip", "w") as archive:
        archive.writestr("a.mid", b"music")
    content = bytearray((tmp_path / "midis.zip").read_bytes())
    content[content.index(b"PK\x01\x02") + 6] = 99  # the version that is needed to read it
    (tmp_path / "midis.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot be read: zip file version 9\.9"):
        MidiFolder(tmp_path / "midis.zip")


@pytest.mark.parametrize("absolute", [False, True])
def test_a_table_cannot_name_files_outside_its_folder(absolute, unpacked):
    outside = unpacked.parent / "outside.midi"
    outside.write_bytes(b"secret")
    named = str(outside) if absolute else "../outside.midi"
    rewrite_table(unpacked, lambda text: text.replace("2004/second.midi", named))
    outcomes = {file.name: file for file in Maestro(unpacked)}
    assert outcomes[named] == PassedOver(named, "not in the folder")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names themselves")
def test_a_file_name_that_is_no_text_becomes_text(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.mid")).write_bytes(b"music")
    (piece,) = MidiFolder(tmp_path)
    assert piece.name == "caf\N{REPLACEMENT CHARACTER}.mid"


def test_a_folder_without_midi_files_is_refused(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        MidiFolder(tmp_path / "missing")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"holds no \.mid, \.midi, \.smf, \.kar, \.rmi file"):
        MidiFolder(tmp_path)


RECORDINGS = {
    "Chopin, Frédéric, Études, Op.10, g0hoN6_HDVU.mid": ("Chopin, Frédéric", "Études, Op.10"),
    "eval/Chopin_Etudes_Op10_g0hoN6_HDVU_no_12_cut.mid": ("Chopin", "Etudes Op10"),
    "Anonymous, Greensleeves, -bcdefghijk.mid": ("Anonymous", "Greensleeves"),
    "Bach_Prelude_in_A_BWV862_gCL5Zvnt0TU_a.mid": ("Bach", "Prelude in A BWV862"),
    "Liszt_Reminiscences_S418_JI6JfJXcUjU_part1.mid": ("Liszt", "Reminiscences S418"),
    "Brahms_Sonata_No2_RhZqUE63B9g_cut_mov_4.mid": ("Brahms", "Sonata No2"),
    "who knows.mid": ("", "who knows"),
}


def test_giantmidi_tells_composer_and_title_by_the_name_of_the_file(tmp_path):
    fill(tmp_path, dict.fromkeys(RECORDINGS, b"music"))
    assert {piece.name: (piece.composer, piece.title) for piece in GiantMidi(tmp_path)} == RECORDINGS


def test_no_composition_of_giantmidi_stands_in_two_splits(tmp_path):
    names = {}
    for number in range(100):
        for take in range(2):
            names[f"Czerny, Carl, Étude No.{number}, Op.{number}, {take}-{number:04}_abcd.mid"] = number
        names[f"Czerny_Etude_No{number}_Op{number}_9-{number:04}_abcd_cut_no_1.mid"] = number
        names[f"Another, One, Title {number}, 0-{number:04}_abcd.mid"] = number  # a recording found for two titles
    fill(tmp_path, dict.fromkeys(names, b"music"))
    split_of = {}
    for piece in GiantMidi(tmp_path):
        split_of.setdefault(names[piece.name], set()).add(piece.split)
    assert all(len(splits) == 1 for splits in split_of.values())
    counts = Counter(splits.pop() for splits in split_of.values())
    # Three standard deviations of 100 draws.
    assert abs(counts["train"] - 90) < 9


def test_giantmidi_is_the_same_from_the_archive_and_the_folder(tmp_path):
    folder = fill(tmp_path / "unpacked", {f"midis/{name}": name.encode() for name in RECORDINGS})
    assert list(GiantMidi(shutil.make_archive(tmp_path / "giant", "zip", folder))) == list(GiantMidi(folder))


def test_a_folder_of_other_names_is_no_giantmidi(tmp_path):
    with pytest.raises(ValueError, match="named as GiantMIDI-Piano does"):
        GiantMidi(fill(tmp_path, {"song.mid": b"music"}))


CHORALES = {
    "train": [[[60, 55, 52, 36], [60, 55, -1, 36]], [[-1, -1, -1, -1], [72, 67, 64, 48]]],
    "valid": [[[62, 57, 53, 38]]],
    "test": [[[64, 59, 55, 40]]],
}


@pytest.fixture
def chorales(tmp_path):
    path = tmp_path / "Jsb16thSeparated.json"
    path.write_text(json.dumps(CHORALES))
    return path


def test_chorales_keep_their_split_and_their_steps(chorales):
    steps = {piece.name: score_to_steps(Score.from_midi(piece.music)).tolist() for piece in JsbChorales(chorales)}
    assert steps == {
        "train/000": CHORALES["train"][0],
        "train/001": CHORALES["train"][1],
        "valid/000": CHORALES["valid"][0],
        "test/000": CHORALES["test"][0],
    }
    assert {(piece.name.split("/")[0], piece.split) for piece in JsbChorales(chorales)} == {
        ("train", "train"),
        ("valid", "validation"),
        ("test", "test"),
    }


@pytest.mark.parametrize(
    "content",
    [
        "no json",
        "[]",
        '{"train": []}',
        '{"train": [[]], "valid": [], "test": []}',
        '{"train": [[[60, 55, 52]]], "valid": [], "test": []}',
        '{"train": [[[60, 55, 52, 36], [60]]], "valid": [], "test": []}',
        '{"train": [[[60, 55, 52, 200]]], "valid": [], "test": []}',
        '{"train": [[[60, 55, 52, 1e999]]], "valid": [], "test": []}',
        '{"train": [[[60, 55, 52, 1000000000000000000000000]]], "valid": [], "test": []}',
        '{"train": [[[60, 55, 52, 36.5]]], "valid": [], "test": []}',
        '{"train": [[["60", "55", "52", "36"]]], "valid": [], "test": []}',
        "[" * 100_000,
    ],
    ids=lambda content: content[:60],
)
def test_what_holds_no_chorales_is_refused(tmp_path, content):
    (tmp_path / "file.json").write_text(content)
    with pytest.raises(ValueError, match=r"file\.json does not hold chorales"):
        JsbChorales(tmp_path / "file.json")
    with pytest.raises(ValueError, match="cannot be read"):
        JsbChorales(tmp_path / "missing.json")


def test_maestro_is_downloaded_where_no_archive_is_given(archive, tmp_path, monkeypatch):
    asked = []

    def give(url, sha256, folder):
        asked.append((url.rpartition("/")[2], sha256, folder.is_dir()))
        return Path(archive)

    monkeypatch.setattr(sources, "download", give)
    assert list(Maestro(version="v2.0.0")) == list(Maestro(archive))
    sha256 = "ec2cc9d94886c6b376db1eaa2b8ad1ce62ff9f0a28b3744782b13163295dadf3"
    assert asked == [("maestro-v2.0.0-midi.zip", sha256, True)]
