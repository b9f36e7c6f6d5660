"""What is copied is found, in any key, faster, or with notes changed; and what is not is called original."""

import json

import datasets
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from symusic import Score

from benchmarks.originality import altered, joined
from benchmarks.originality import main as plant_copies
from evaluation.originality import (
    EXCERPTS,
    Index,
    Line,
    excerpt,
    index_corpus,
    is_figuration,
    main,
    read_line,
    seeds_of,
    write_score,
)
from tokenization import MusicTxTokenizer

TOKENIZER = MusicTxTokenizer()


@pytest.fixture(scope="module")
def pieces(make_score):
    """Eight training pieces of half a minute, as decoded from their tokens."""
    return {
        f"{seed}.mid": read_line(TOKENIZER.to_score(TOKENIZER.encode(make_score(seed, seconds=30.0))))
        for seed in range(8)
    }


@pytest.fixture(scope="module")
def index(pieces, make_score):
    index = Index(pieces)
    index.measure_baseline([read_line(make_score(seed, seconds=30.0)) for seed in range(100, 110)])
    return index


def changed(line, **change):
    return altered(line, np.random.default_rng(0), **change)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"semitones": 3},
        {"stretch": 1 / 1.05},
        {"other": 0.1},
        {"missing": 0.05},
        {"semitones": -5, "stretch": 1.05, "other": 0.1},
    ],
    ids=str,
)
def test_a_planted_copy_is_found_with_its_piece_and_its_time(index, pieces, change):
    plant = excerpt(pieces["3.mid"], 8.0, 22.0)
    found = index.search(changed(plant, **change))
    assert found.is_copy
    assert found.passage.name == "3.mid"
    assert found.passage.semitones == -change.get("semitones", 0)
    assert found.passage.training_start_seconds == pytest.approx(8, abs=1.5)
    assert found.passage.training_end_seconds == pytest.approx(22, abs=1.5)
    assert found.passage.start_seconds == pytest.approx(0, abs=1.5)
    assert found.longest_run <= len(plant.pitch)
    assert 0 < found.overlap <= 1


def test_an_exact_copy_is_one_run(index, pieces):
    plant = excerpt(pieces["5.mid"], 5.0, 20.0)
    found = index.search(plant)
    assert found.passage.alignment_score == found.longest_run == len(plant.pitch)
    assert found.overlap == 1


def test_a_short_quotation_in_music_of_ones_own_is_located(index, pieces, make_score):
    own, quoted = read_line(make_score(50, seconds=20.0)), excerpt(pieces["6.mid"], 10.0, 16.0)
    at = float(own.start[-1]) + 1
    moved = quoted._replace(onset=quoted.onset + at, start=quoted.start + at, end=quoted.end + at)
    passage = index.search(Line(*map(np.concatenate, zip(own, moved, strict=True)))).passage
    assert passage.name == "6.mid"
    assert passage.start_seconds == pytest.approx(at, abs=0.1)
    assert passage.training_start_seconds == pytest.approx(10, abs=0.5)
    assert passage.training_end_seconds == pytest.approx(16, abs=0.5)


def test_other_music_is_original(index, make_score):
    found = index.search(read_line(make_score(seed=77, seconds=30.0)))
    assert found.passage.alignment_score < 20
    assert found.overlap < 0.1


@pytest.mark.parametrize("seconds", [0.0, 0.3])
def test_next_to_no_music_is_like_nothing(index, pieces, seconds):
    found = index.search(excerpt(pieces["0.mid"], 0.0, seconds))
    assert found.passage.alignment_score == 0
    assert not found.is_copy


def test_the_notes_of_a_chord_are_in_the_order_of_their_keys_however_they_fall():
    score = write_score(
        Line(
            *(
                np.array(field)
                for field in ([0, 0, 0, 1], [0.02, 0.0, 0.03, 1], [1, 1, 1, 2], [60, 67, 64, 72], [9] * 4)
            )
        )
    )
    line = read_line(score)
    assert line.pitch.tolist() == [60, 64, 67, 72]
    assert line.onset.tolist() == pytest.approx([0, 0, 0, 1], abs=0.001)


def test_seeds_know_intervals_and_gaps_but_not_the_key(pieces):
    line = pieces["1.mid"]
    seeds = seeds_of(line)
    assert len(seeds) == len(line.pitch) - 7
    assert (seeds_of(line._replace(pitch=line.pitch + 2)) == seeds).all()
    assert (seeds_of(line._replace(onset=line.onset * 3)) != seeds).any()


def melody(pitch, seconds=0.08):
    """One key after the other."""
    onset = np.arange(len(pitch)) * seconds
    return read_line(write_score(Line(onset, onset, onset + seconds, np.asarray(pitch), np.full(len(pitch), 64))))


def test_a_tremolo_is_no_copy_of_another_but_what_is_copied_beside_it_is_found(pieces):
    index = Index(pieces | {"tremolo.mid": joined(pieces["0.mid"], melody([48, 60] * 100), pieces["1.mid"])})
    alone = index.search(melody([53, 65] * 75))
    assert alone.passage.alignment_score < 15
    assert alone.longest_run < 15
    found = index.search(joined(melody([53, 65] * 75), excerpt(pieces["3.mid"], 8.0, 22.0)))
    assert found.passage.name == "3.mid"
    assert found.passage.alignment_score > 50


@pytest.mark.parametrize(
    ("pitch", "counted"),
    [
        (np.resize([60, 61], 80), 12),
        (np.array([60, 61] * 20 + [61, 60, 60, 61, 66] + [60, 61] * 20), 12),
        (np.resize([48, 52, 55, 60], 80), 12),
        (np.arange(40, 100), 13),
        (np.resize([0, 12, 24], 60) + np.arange(60) // 3, 15),
    ],
    ids=["trill", "trill with a slip", "repeated chord", "chromatic scale", "arpeggios"],
)
def test_a_figuration_counts_only_until_it_is_recognised(pitch, counted):
    marked = is_figuration(melody(pitch))
    assert marked[counted:].all()
    assert not marked[:9].any()


def test_music_is_not_a_figure(pieces):
    assert is_figuration(pieces["2.mid"]).mean() < 0.05


@pytest.fixture
def corpus(make_score, tmp_path):
    """A prepared corpus whose first validation piece is of a composition that the training split has, too."""
    splits = {}
    for split, seeds in {"train": range(4), "validation": (0, 20, 21), "test": (30,)}.items():
        rows = [
            {
                "name": f"{seed}.mid",
                "composer": "Somebody",
                "title": f"Étude No. {seed}" if split == "train" else f"etude no {seed}".replace("e", "é", 1),
                "input_ids": TOKENIZER.encode(make_score(seed, seconds=20.0)),
            }
            for seed in seeds
        ]
        splits[split] = datasets.Dataset.from_list(rows)
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "corpus")
    TOKENIZER.save_pretrained(tmp_path / "corpus" / "tokenizer")
    return tmp_path / "corpus"


def test_compositions_in_both_splits_are_left_out_of_the_baseline(corpus):
    splits = datasets.load_from_disk(corpus)
    index = index_corpus(splits["train"], splits["validation"], TOKENIZER)
    assert index.names == ["0.mid", "1.mid", "2.mid", "3.mid"]
    assert len(index.baseline_scores) == EXCERPTS
    assert max(index.baseline_scores) < 20
    with pytest.raises(ValueError, match="every held-out composition is also in the training split"):
        index_corpus(splits["train"], splits["validation"].select([0]), TOKENIZER)


def test_the_command_line_builds_an_index_finds_the_copy_and_writes_both_passages(
    corpus, make_score, tmp_path, capsys
):
    main(["build", "--corpus", str(corpus), "--index", str(tmp_path / "index")])
    copy, own = tmp_path / "copy.mid", tmp_path / "own.mid"
    TOKENIZER.to_score(TOKENIZER.encode(make_score(2, seconds=20.0))).dump_midi(copy)
    make_score(60, seconds=20.0).dump_midi(own)
    capsys.readouterr()
    main(
        ["check", str(copy), str(own), "--index", str(tmp_path / "index"), "--output_dir", str(tmp_path / "passages")]
    )
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{copy}: COPY; ")
    assert "as in 2.mid from 0.0 to" in first
    assert second.startswith(f"{own}: original; ")
    alike = [
        read_line(Score(tmp_path / "passages" / f"copy-{which}.mid")).pitch.tolist() for which in ("own", "training")
    ]
    assert alike[0] == alike[1]
    assert len(alike[0]) > 50


def test_the_benchmark_plants_copies_and_counts_what_is_found(corpus, capsys):
    plant_copies(["--corpus", str(corpus), "--trials", "2", "--seconds", "15"])
    rows = capsys.readouterr().out.splitlines()[3:]
    assert len(rows) == 5
    assert rows[0].startswith("| exact | 2 of 2 | 2 of 2 |")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["build", "--corpus", "absent", "--index", "index"], "absent is not a prepared corpus"),
        (
            ["check", "own.mid", "--index", "absent"],
            "absent holds no index that can be read; make one with the command build",
        ),
    ],
)
def test_a_mistake_ends_in_one_line_and_code_2(words, complaint, capsys):
    assert main(words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert complaint in line


def test_a_file_that_is_no_midi_is_named(index, tmp_path, capsys):
    index.save(tmp_path / "index")
    (tmp_path / "text.mid").write_text("no music")
    assert main(["check", str(tmp_path / "text.mid"), "--index", str(tmp_path / "index")]) == 2
    assert "text.mid: not a MIDI file" in capsys.readouterr().err


def test_an_index_of_another_shape_is_refused_in_one_line(index, tmp_path, capsys):
    own = str(tmp_path / "own.mid")
    for number, (arrays, facts) in enumerate(
        [
            ({"seeds": index.seeds}, {}),
            ({"places": index.places[:-1]}, {}),
            ({"places": index.places + len(index.line.pitch)}, {}),
            ({"pitch": index.line.pitch.reshape(-1, 1)}, {}),
            ({"more": index.places}, {}),
            ({"start": index.line.start.astype("float64")}, {}),
            ({"onset": index.line.onset * float("nan")}, {}),
            ({}, {"ends": [1, 10**30]}),
            ({}, {"ends": [1, float("inf")]}),
            ({}, {"names": list(range(len(index.names)))}),
            ({}, {"ends": [[1, 2]]}),
            ({}, {"ends": None}),
            ({}, {"names": ["1.mid"]}),
            ({}, {"baseline_scores": ["high"]}),
            ({}, {"baseline_scores": None}),
        ]
    ):
        folder = tmp_path / str(number)
        index.save(folder)
        written = load_file(folder / "index.safetensors") if number else {}
        save_file(written | arrays, folder / "index.safetensors")
        known = json.loads((folder / "index.json").read_text())
        (folder / "index.json").write_text(json.dumps(known | facts))
        assert main(["check", own, "--index", str(folder)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "holds no index that can be read" in error


def test_an_index_that_is_saved_finds_the_same(index, pieces, tmp_path):
    index.save(tmp_path)
    loaded = Index.load(tmp_path)
    plant = changed(excerpt(pieces["4.mid"], 3.0, 12.0), semitones=1)
    assert loaded.search(plant) == index.search(plant)
    assert loaded.baseline_scores == index.baseline_scores


def test_ctrl_c_ends_in_one_line_and_code_130(corpus, tmp_path, capsys, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("evaluation.originality.index_corpus", interrupted)
    assert main(["build", "--corpus", str(corpus), "--index", str(tmp_path / "index")]) == 130
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "index").exists()
