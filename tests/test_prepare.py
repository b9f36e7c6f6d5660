"""Preparation: files become rows, bad files are named, and a corpus stands whole or not at all."""

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest
from symusic import Score
from transformers import AutoTokenizer

from corpus import prepare as preparation
from corpus import shards
from corpus.dataset import EvaluationWindows, load_corpus
from corpus.prepare import main, prepare
from corpus.sources import Maestro, MidiFolder, Mixture, Piece
from tokenization import MusicTxTokenizer

CHECKOUT = Path(__file__).parents[1]
SPLITS = ["train", "train", "test", "train", "validation", "train"]

only_where_workers_are_forked = pytest.mark.skipif(
    sys.platform != "linux", reason="a spawned worker does not see what a test has put in place"
)


@pytest.fixture(scope="module")
def tokenizer():
    return MusicTxTokenizer()


@pytest.fixture(scope="module")
def midis(make_score):
    return {f"2018/{seed}.midi": make_score(seed, seconds=5.0).dumps_midi() for seed in range(len(SPLITS))}


@pytest.fixture
def maestro(midis, tmp_path):
    """An archive in MAESTRO's layout."""
    folder = tmp_path / "published" / "maestro-v3.0.0"
    (folder / "2018").mkdir(parents=True)
    for name, midi in midis.items():
        (folder / name).write_bytes(midi)
    with (folder / "maestro-v3.0.0.csv").open("w", encoding="utf-8", newline="") as lines:
        csv.writer(lines).writerows([["split", "midi_filename"], *zip(SPLITS, midis, strict=True)])
    return shutil.make_archive(tmp_path / "maestro", "zip", folder.parent)


@pytest.fixture
def many_midis(make_score, tmp_path):
    """A folder that makes more than one task."""
    folder = tmp_path / "many"
    folder.mkdir()
    for seed in range(2 * preparation.PIECES_PER_TASK + 3):
        make_score(seed, seconds=1.0).dump_midi(folder / f"{seed:02}.mid")
    return folder


def rows_of(corpus_dir):
    return {(split, row["name"]): row["input_ids"] for split, rows in load_corpus(corpus_dir).items() for row in rows}


def bytes_of(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def wait_until(condition):
    """Waits as long as a busy machine may take, and not forever."""
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_row_is_a_piece_in_its_official_split_from_bos_to_eos(maestro, midis, tokenizer, tmp_path):
    prepare(Maestro(maestro), tmp_path / "corpus", num_workers=1)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert rows_of(tmp_path / "corpus") == {
        (split, name): [bos, *tokenizer.encode(midi, add_special_tokens=False), eos]
        for split, (name, midi) in zip(SPLITS, midis.items(), strict=True)
    }
    assert load_corpus(tmp_path / "corpus")["train"].features == shards.FEATURES


def test_the_report_counts_what_the_rows_hold(maestro, tokenizer, tmp_path):
    report = prepare(Maestro(maestro), tmp_path / "corpus", num_workers=1)
    assert report == json.loads((tmp_path / "corpus/report.json").read_text(encoding="utf-8"))
    assert (report["source"], report["files"], report["passed_over"]) == ("maestro-v3.0.0", 6, {})
    for split, counts in report["splits"].items():
        rows = [ids for (its_split, _), ids in rows_of(tmp_path / "corpus").items() if its_split == split]
        decoded = [tokenizer.to_score(ids) for ids in rows]
        assert counts["pieces"] == SPLITS.count(split) == len(rows)
        assert counts["tokens"] == sum(len(ids) for ids in rows)
        assert counts["notes"] == sum(score.note_num() for score in decoded)
        seconds = sum(score.end() / 1000 for score in decoded)
        assert counts["hours"] == pytest.approx(seconds / 3600, abs=1e-3)


def test_the_tokenizer_lies_beside_the_rows(maestro, tokenizer, tmp_path):
    prepare(Maestro(maestro), tmp_path / "corpus", num_workers=1)
    assert MusicTxTokenizer.from_pretrained(tmp_path / "corpus/tokenizer").get_vocab() == tokenizer.get_vocab()


def test_the_same_files_give_the_same_bytes_with_any_number_of_workers(many_midis, tmp_path):
    for num_workers in (1, 3):
        prepare(MidiFolder(many_midis), tmp_path / f"by {num_workers}", num_workers=num_workers)
    assert bytes_of(tmp_path / "by 1") == bytes_of(tmp_path / "by 3")


def test_the_fingerprint_tells_other_files_other_names_and_other_splits(maestro, tmp_path):
    def fingerprint(change):
        source = Maestro(maestro)
        change(source.rows)
        report = prepare(source, tmp_path / "corpus", num_workers=1, overwrite=True)
        assert json.loads((tmp_path / "corpus/report.json").read_text(encoding="utf-8")) == report
        return report["fingerprint"]

    fingerprints = [
        fingerprint(lambda rows: None),
        fingerprint(lambda rows: rows.pop()),
        fingerprint(lambda rows: rows[0].update(split="validation")),
        fingerprint(lambda rows: rows[0].update(midi_filename=rows[1]["midi_filename"])),
    ]
    assert len(set(fingerprints)) == 4
    assert fingerprint(lambda rows: None) == fingerprints[0]


def test_bad_files_are_named_and_the_others_prepared(midi_folder, broken_midis, tmp_path):
    good = len(MidiFolder(midi_folder))
    for what, midi in broken_midis.items():
        (midi_folder / f"{what}.mid").write_bytes(midi)
    report = prepare(MidiFolder(midi_folder), tmp_path / "corpus", num_workers=2)
    assert report["files"] == good + len(broken_midis)
    assert report["passed_over"].keys() == {f"{what}.mid" for what in broken_midis}
    assert all(report["passed_over"].values())
    assert len(rows_of(tmp_path / "corpus")) == good


def test_doubles_are_passed_over_with_the_name_of_the_first(midi_folder, tmp_path):
    shutil.copy(midi_folder / "one.mid", midi_folder / "deeper" / "double.mid")
    report = prepare(MidiFolder(midi_folder), tmp_path / "corpus", num_workers=1)
    assert report["passed_over"] == {"one.mid": "the same music as deeper/double.mid"}


def test_a_task_is_bounded_by_bytes_and_by_pieces(monkeypatch):
    monkeypatch.setattr(preparation, "TASK_BYTES", 100)
    small, large = Piece("small", "train", b"1234567890"), Piece("large", "train", bytes(1000))
    pieces = iter([small, large, *[small] * (preparation.PIECES_PER_TASK + 1), large, large])
    tasks = [[piece.name for piece in task] for task in iter(lambda: preparation._take_task(pieces), [])]
    assert tasks == [["small", "large"], ["small"] * preparation.PIECES_PER_TASK, ["small", "large"], ["large"]]


@only_where_workers_are_forked
def test_a_file_that_takes_its_process_down_costs_that_file_alone(many_midis, tmp_path, monkeypatch):
    untouched = prepare(MidiFolder(many_midis), tmp_path / "untouched", num_workers=2)
    for name in ("03a.mid", "12a.mid"):
        (many_midis / name).write_bytes(f"deadly {name}".encode())
    survivable = preparation._tokenized_or_reason
    monkeypatch.setattr(
        preparation,
        "_tokenized_or_reason",
        lambda midi: os.kill(os.getpid(), signal.SIGKILL) if midi.startswith(b"deadly") else survivable(midi),
    )
    report = prepare(MidiFolder(many_midis), tmp_path / "corpus", num_workers=2)
    assert report["passed_over"].keys() == {"03a.mid", "12a.mid"}
    assert all("crashed" in reason for reason in report["passed_over"].values())
    assert report["fingerprint"] == untouched["fingerprint"]


@only_where_workers_are_forked
def test_whatever_a_parser_raises_costs_the_file_alone(midi_folder, tmp_path, monkeypatch):
    class Moody(MusicTxTokenizer):
        def encode(self, midi, **options):
            if midi == (midi_folder / "one.mid").read_bytes():
                raise OverflowError("too much")
            return super().encode(midi, **options)

    report = prepare(MidiFolder(midi_folder), tmp_path / "corpus", Moody(), num_workers=1)
    assert report["passed_over"] == {"one.mid": "OverflowError: too much"}


@pytest.fixture
def own(midis, tmp_path):
    """Makes prepared folders of the numbered pieces of `midis`, in the splits that a table gives."""

    def make(name, **splits):
        folder = tmp_path / f"{name} midis"
        folder.mkdir()
        rows = [["file_name", "split"]]
        for split, numbers in splits.items():
            for number in numbers:
                # Other bytes of the same music.
                Score.from_midi(list(midis.values())[number]).dump_midi(folder / f"{split}{number}.mid")
                rows.append([f"{split}{number}.mid", split])
        with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as lines:
            csv.writer(lines).writerows(rows)
        prepare(MidiFolder(folder, folder / "metadata.csv"), tmp_path / name, num_workers=1)
        return str(tmp_path / name)

    return make


def test_what_is_held_out_is_left_out_of_training(own, tmp_path):
    own("one", train=[0, 1, 2, 3, 4], validation=[1, 5], test=[0, 5])
    held_out = {("test", "test0.mid"), ("test", "test5.mid"), ("validation", "validation1.mid")}
    assert rows_of(tmp_path / "one").keys() == {
        *held_out,
        *(("train", f"train{number}.mid") for number in (2, 3, 4)),
    }


def test_a_mixture_leaves_out_of_training_what_any_of_its_corpora_holds_out(own, tmp_path, capsys):
    first, second = own("first", train=[0, 1, 2], test=[3]), own("second", train=[2, 3, 4], validation=[0], test=[5])
    main(["mix", f"{first}=1,{second}=0.5", "--output_dir", str(tmp_path / "both"), "--num_workers", "1"])
    corpus = load_corpus(tmp_path / "both")
    assert {(split, row["name"], row["weight"]) for split, rows in corpus.items() for row in rows} == {
        ("train", "first/train1.mid", 1.0),
        ("train", "first/train2.mid", 1.0),
        ("train", "second/train4.mid", 0.5),
        ("validation", "second/validation0.mid", 1.0),
        ("test", "first/test3.mid", 1.0),
        ("test", "second/test5.mid", 1.0),
    }
    report = json.loads((tmp_path / "both/report.json").read_text(encoding="utf-8"))
    assert report["source"] == "first=1,second=0.5"
    assert report["passed_over"] == {
        "first/train0.mid": "the same music as second/validation0.mid",
        "second/train2.mid": "the same music as first/train2.mid",
        "second/train3.mid": "the same music as first/test3.mid",
    }
    ids = {row["name"]: row["input_ids"] for row in load_corpus(second)["train"]}
    assert ids["train4.mid"] in corpus["train"]["input_ids"]


def test_weights_belong_to_the_fingerprint_of_a_mixture(own, tmp_path):
    first, second = own("first", train=[0, 1]), own("second", train=[2])
    fingerprints = [
        prepare(Mixture({first: 1, second: weight}), tmp_path / "both", num_workers=1, overwrite=True)["fingerprint"]
        for weight in (1, 0.5, 1)
    ]
    assert fingerprints[0] == fingerprints[2] != fingerprints[1]


def test_corpora_of_different_vocabularies_do_not_mix(own, chorales, tmp_path, capsys):
    main(["jsb", "--input", chorales, "--output_dir", str(tmp_path / "jsb"), "--num_workers", "1"])
    corpora = f"{own('first', train=[0])}=1,{tmp_path / 'jsb'}=1"
    assert main(["mix", corpora, "--output_dir", str(tmp_path / "both")]) == 2
    assert "different vocabularies" in capsys.readouterr().err


@pytest.fixture
def chorales(tmp_path):
    chorale = [[60, 55, 52, 36], [60, 55, 52, 36], [62, -1, 53, 38]]
    path = tmp_path / "Jsb16thSeparated.json"
    path.write_text(json.dumps({"train": [chorale, chorale[::-1]], "valid": [chorale[1:]], "test": [chorale[2:]]}))
    return str(path)


def test_chorales_are_prepared_voice_by_voice_with_a_tokenizer_of_their_own(chorales, tmp_path, capsys):
    main(["jsb", "--input", chorales, "--output_dir", str(tmp_path / "jsb"), "--num_workers", "1"])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "jsb/tokenizer")
    first = load_corpus(tmp_path / "jsb")["train"][0]
    assert " ".join(tokenizer.convert_ids_to_tokens(first["input_ids"])) == (
        "BOS_None Pitch_60 Pitch_55 Pitch_52 Pitch_36 Pitch_60 Pitch_55 Pitch_52 Pitch_36 "
        "Pitch_62 Silence_None Pitch_53 Pitch_38 EOS_None"
    )
    assert first["composer"] == "Johann Sebastian Bach"
    counts = json.loads((tmp_path / "jsb/report.json").read_text())["splits"]
    assert counts["test"] == {"pieces": 1, "notes": 3, "hours": 0.0, "tokens": 6}
    assert counts["train"]["pieces"] == 2


def test_splits_that_nothing_falls_into_are_there_and_empty(midi_folder, tmp_path):
    for name in MidiFolder(midi_folder).names[1:]:
        (midi_folder / name).unlink()
    report = prepare(MidiFolder(midi_folder), tmp_path / "corpus", num_workers=1)
    pieces = {split: counts["pieces"] for split, counts in report["splits"].items()}
    assert sorted(pieces.values()) == [0, 0, 1]
    assert {split: len(rows) for split, rows in load_corpus(tmp_path / "corpus").items()} == pieces


def test_a_large_corpus_is_written_in_files_of_bounded_size(many_midis, tmp_path, monkeypatch):
    whole = prepare(MidiFolder(many_midis), tmp_path / "whole", num_workers=1)
    monkeypatch.setattr(shards, "SHARD_BYTES", 1000)
    sharded = prepare(MidiFolder(many_midis), tmp_path / "sharded", num_workers=1)
    assert len(list((tmp_path / "sharded/train").glob("*.arrow"))) > 1
    assert rows_of(tmp_path / "sharded") == rows_of(tmp_path / "whole")
    assert sharded == whole


def test_nothing_is_written_outside_the_output(maestro, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    prepare(Maestro(maestro), tmp_path / "deep/er/corpus", num_workers=1)
    assert not (tmp_path / "cache").exists()
    assert [path.name for path in (tmp_path / "deep/er").iterdir()] == ["corpus"]


def test_a_corpus_that_stands_is_replaced_only_when_asked_to(maestro, midi_folder, tmp_path):
    prepare(Maestro(maestro), tmp_path / "corpus", num_workers=1)
    before = bytes_of(tmp_path / "corpus")
    with pytest.raises(FileExistsError, match="--overwrite"):
        prepare(MidiFolder(midi_folder), tmp_path / "corpus", num_workers=1)
    assert bytes_of(tmp_path / "corpus") == before
    prepare(MidiFolder(midi_folder), tmp_path / "corpus", num_workers=1, overwrite=True)
    assert len(rows_of(tmp_path / "corpus")) == len(MidiFolder(midi_folder))
    assert not list(tmp_path.glob(".*"))


def test_a_folder_that_is_no_corpus_is_never_replaced(maestro, midi_folder):
    before = bytes_of(midi_folder)
    with pytest.raises(FileExistsError, match="not a prepared corpus"):
        prepare(Maestro(maestro), midi_folder, num_workers=1, overwrite=True)
    assert bytes_of(midi_folder) == before


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is locked there")
def test_two_processes_do_not_prepare_one_corpus_at_the_same_time(maestro, tmp_path, capsys):
    hold = "import sys, time; from pathlib import Path; from corpus.atomic_files import exclusive\n"
    hold += "with exclusive(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    command = [sys.executable, "-c", hold, tmp_path / ".corpus.lock"]
    words = ["maestro", "--input", maestro, "--output_dir", str(tmp_path / "corpus"), "--num_workers", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT) as other:
        assert other.stdout.readline() == "held\n"
        assert main([*words, "--overwrite"]) == 2
        assert f"process {other.pid} writes there" in capsys.readouterr().err
        other.kill()
    assert main(words) == 0
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_an_error_midway_leaves_what_stood_there_and_nothing_else(maestro, tmp_path):
    prepare(Maestro(maestro), tmp_path / "corpus", num_workers=1)
    before = bytes_of(tmp_path)

    class Full(Maestro):
        def __iter__(self):
            yield next(super().__iter__())
            raise OSError(28, "No space left on device")

    for name in ("corpus", "new"):
        with pytest.raises(OSError, match="No space"):
            prepare(Full(maestro), tmp_path / name, num_workers=1, overwrite=True)
        assert bytes_of(tmp_path) == before
    assert not (tmp_path / "new").exists()


@only_where_workers_are_forked
def test_a_killed_run_leaves_no_corpus_and_no_workers_and_the_next_run_cleans_up(many_midis, tmp_path):
    # The run stops after its last file for good, with its first pieces done.
    stopping = "from corpus import prepare, sources; import sys, time; read = sources.MidiFolder.__iter__; "
    stopping += "sources.MidiFolder.__iter__ = lambda self: (yield from read(self)) or time.sleep(600); prepare.main()"
    command = [sys.executable, "-c", stopping, "folder", "--input", many_midis, "--num_workers", "2"]
    run = subprocess.Popen([*command, "--output_dir", tmp_path / "corpus"], cwd=CHECKOUT, stderr=subprocess.DEVNULL)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
    wait_until(lambda: run.poll() is not None or len(children.read_text().split()) == 2)
    workers = [Path(f"/proc/{worker}") for worker in children.read_text().split()]
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert run.returncode == -signal.SIGKILL
    assert not (tmp_path / "corpus").exists()
    assert list(tmp_path.glob(".corpus.unfinished-*"))
    wait_until(lambda: not any(worker.exists() for worker in workers))

    prepare(MidiFolder(many_midis), tmp_path / "corpus", num_workers=1)
    assert len(rows_of(tmp_path / "corpus")) == len(MidiFolder(many_midis))
    assert not list(tmp_path.glob(".*"))


def test_the_command_prepares_maestro_and_prints_a_report(maestro, tmp_path, capsys):
    main(["maestro", "--input", maestro, "--output_dir", str(tmp_path / "corpus"), "--num_workers", "1"])
    said = capsys.readouterr().out
    assert json.loads((tmp_path / "corpus/report.json").read_text(encoding="utf-8"))["fingerprint"] in said
    assert "passed over: 0 of 6 files" in said


def test_another_tokenizer_prepares_the_same_pieces(maestro, tmp_path, capsys):
    for name, tokenizer in (("by name", "REMI"), ("from a folder", str(tmp_path / "by name/tokenizer"))):
        options = ["--output_dir", str(tmp_path / name), "--num_workers", "1", "--tokenizer", tokenizer]
        main(["maestro", "--input", maestro, *options])
    rows = rows_of(tmp_path / "from a folder")
    assert rows == rows_of(tmp_path / "by name")
    assert len(rows) == len(SPLITS)
    tokens = AutoTokenizer.from_pretrained(tmp_path / "by name/tokenizer").convert_ids_to_tokens(
        next(iter(rows.values()))
    )
    assert tokens[:2] == ["BOS_None", "Bar_None"]
    words = ["maestro", "--input", maestro, "--output_dir", str(tmp_path / "none"), "--tokenizer", "nothing"]
    assert main(words) == 2
    assert "nothing is no folder of a saved tokenizer" in capsys.readouterr().err


def test_an_empty_validation_split_is_named_with_the_way_out(make_score, tmp_path, capsys):
    (tmp_path / "few").mkdir()
    for seed in range(4):
        make_score(seed, seconds=1.0).dump_midi(tmp_path / "few" / f"{seed}.mid")
    words = ["folder", "--input", str(tmp_path / "few"), "--num_workers", "1", "--output_dir"]
    assert main([*words, str(tmp_path / "default")]) == 0
    assert "No piece fell into the validation split" in capsys.readouterr().out.splitlines()[-2]
    with pytest.raises(ValueError, match=r"validation split is empty; .* larger --validation_share"):
        EvaluationWindows(load_corpus(tmp_path / "default")["validation"], 8)
    assert main([*words, str(tmp_path / "larger"), "--validation_share", "0.5"]) == 0
    assert "No piece fell" not in capsys.readouterr().out
    assert len(EvaluationWindows(load_corpus(tmp_path / "larger")["validation"], 8)) > 0


def test_the_command_prepares_a_folder_and_names_what_it_passed_over(midi_folder, tmp_path, capsys):
    (midi_folder / "broken.mid").write_bytes(b"broken")
    main(["folder", "--input", str(midi_folder), "--output_dir", str(tmp_path / "corpus"), "--num_workers", "1"])
    said = capsys.readouterr().out
    assert "passed over: 1 of 7 files" in said
    assert "\n  broken.mid: " in said


def test_what_a_user_can_mend_ends_in_one_line_and_code_2(midi_folder, maestro, tmp_path, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "only broken").mkdir()
    (tmp_path / "only broken" / "broken.mid").write_bytes(b"broken")
    corpus = str(tmp_path / "corpus")
    for arguments, complaint in [
        (["maestro", "--input", "missing.zip", "--output_dir", corpus], "missing.zip does not exist"),
        (["maestro", "--input", str(tmp_path / "file"), "--output_dir", corpus], "neither a folder nor a zip"),
        (["maestro", "--input", str(midi_folder), "--output_dir", corpus], "no maestro csv"),
        (["folder", "--input", "missing", "--output_dir", corpus], "missing does not exist"),
        (["folder", "--input", str(tmp_path / "published"), "--output_dir", str(tmp_path / "file")], "file"),
        (["folder", "--input", str(tmp_path / "only broken"), "--output_dir", corpus], "None of the 1 files"),
        (["maestro", "--input", maestro, "--output_dir", str(tmp_path / "file" / "corpus")], "File exists"),
        (["maestro", "--input", maestro, "--output_dir", str(midi_folder)], "not a prepared corpus"),
        (["maestro", "--input", maestro, "--output_dir", corpus, "--num_workers", "0"], "num_workers (0)"),
        (["giantmidi", "--input", str(midi_folder), "--output_dir", corpus], "named as GiantMIDI-Piano does"),
        (["jsb", "--input", str(tmp_path / "file"), "--output_dir", corpus], "does not hold chorales"),
        (["mix", f"{midi_folder}=1", "--output_dir", corpus], "not a prepared corpus"),
        (["mix", f"{midi_folder}=0", "--output_dir", corpus], "weights are positive"),
    ]:
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("python -m corpus.prepare: ")
        assert complaint in line
        assert not (tmp_path / "corpus").exists()
