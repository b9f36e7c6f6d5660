"""Windows over prepared pieces: what training and evaluation see, and that a seed and an index say it all."""

import os

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, List, Value
from torch.utils.data import DataLoader

from corpus.dataset import Crops, CropTransform, EvaluationWindows, load_corpus
from tokenization import MusicTxTokenizer

BOS, EOS = 1, 2
FEATURES = Features({"name": Value("string"), "input_ids": List(Value("uint16"))})


def pieces_of(*lengths):
    """Pieces whose tokens are all different, so that a token identifies its position."""
    ends = 3 + np.cumsum([length - 2 for length in lengths])
    rows = [[BOS, *range(end - length + 2, end), EOS] for length, end in zip(lengths, ends, strict=True)]
    names = [f"piece {row}" for row in range(len(rows))]
    return Dataset.from_dict({"name": names, "input_ids": rows}, features=FEATURES)


def real_tokens(example):
    return example["input_ids"][example["labels"] != -100].tolist()


def epoch_of(crops, epoch):
    return [crops[epoch * len(crops) + place] for place in range(len(crops))]


def same(left, right):
    return all(torch.equal(left[key], right[key]) for key in ("input_ids", "labels"))


@pytest.fixture
def pieces():
    return pieces_of(2, 50, 64, 65, 700, 301, 128)


def test_a_file_that_becomes_shorter_while_it_is_read_is_an_error_and_not_a_signal(tmp_path):
    DatasetDict({"train": pieces_of(*[1000] * 8)}).save_to_disk(tmp_path)
    crops = Crops(load_corpus(tmp_path)["train"], 64)
    crops[0]
    (path,) = tmp_path.glob("train/data-*.arrow")
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(OSError, match="has become shorter while it is read"):
        crops[1]


@pytest.mark.parametrize("windows", [Crops, EvaluationWindows])
def test_every_example_has_the_asked_length_and_labels_that_repeat_the_input(pieces, windows):
    examples = windows(pieces, length=64)
    for place in range(len(examples)):
        input_ids, labels = examples[place]["input_ids"], examples[place]["labels"]
        assert input_ids.shape == labels.shape == (64,)
        assert input_ids.dtype == labels.dtype == torch.int64
        real = labels != -100
        assert torch.equal(input_ids[real], labels[real])
        assert real.tolist() == sorted(real.tolist(), reverse=True), "padding stands on the right"


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_an_epoch_of_crops_shows_every_token_of_every_piece(pieces, epoch):
    seen = {token for crop in epoch_of(Crops(pieces, length=64), epoch) for token in real_tokens(crop)}
    assert seen == {token for ids in pieces["input_ids"] for token in ids}


def test_a_crop_is_a_run_of_tokens_of_one_piece(pieces):
    runs = {tuple(ids[start : start + 64]) for ids in pieces["input_ids"] for start in range(len(ids))}
    assert all(tuple(real_tokens(crop)) in runs for crop in epoch_of(Crops(pieces, length=64), 3))


def test_only_pieces_shorter_than_a_crop_are_padded():
    crops = Crops(pieces_of(30, 64, 1000), length=64)
    assert sorted(len(real_tokens(crop)) for crop in epoch_of(crops, 0)) == [30] + [64] * (len(crops) - 1)


def test_every_epoch_shows_the_beginning_and_the_ending_of_every_piece(pieces):
    for epoch in range(3):
        shown = [real_tokens(crop) for crop in epoch_of(Crops(pieces, length=64), epoch)]
        assert sum(ids[0] == BOS for ids in shown) == sum(ids[-1] == EOS for ids in shown) == len(pieces)


def test_windows_begin_elsewhere_in_the_next_epoch_and_come_in_another_order():
    crops = Crops(pieces_of(1000), length=64)
    first, second = ([real_tokens(crop)[0] for crop in epoch_of(crops, epoch)] for epoch in (0, 1))
    assert sorted(first) != sorted(second)
    assert np.argsort(first).tolist() != np.argsort(second).tolist()


def test_crops_depend_on_the_seed_and_the_index_and_not_on_what_was_asked_before(pieces):
    visited, fresh = Crops(pieces, length=64, seed=5), Crops(pieces, length=64, seed=5)
    in_order = [visited[index] for index in range(3 * len(visited))]
    for index in np.random.default_rng(0).permutation(len(in_order)).tolist():
        assert same(fresh[index], in_order[index])
    other = Crops(pieces, length=64, seed=6)
    assert not all(same(other[index], example) for index, example in enumerate(in_order))


def test_augmentation_draws_anew_at_every_index_and_the_same_again_when_asked_again(pieces):
    draws = []

    def augment(ids, random, composer):
        draws.append(int(random.integers(1 << 62)))
        return ids

    crops = Crops(pieces, length=64, transform=augment)
    indexes = range(2 * len(crops))
    for index in [*indexes, *indexes]:
        crops[index]
    assert len(set(draws)) == len(indexes)
    assert draws[: len(indexes)] == draws[len(indexes) :]


def test_a_resumed_training_reads_on_where_it_stopped_with_any_number_of_workers(pieces):
    crops = Crops(pieces, length=64, seed=1)
    stopped_at = len(crops) - 3
    resumed = DataLoader(crops, batch_size=2, sampler=range(stopped_at, stopped_at + 8), num_workers=2)
    expected = DataLoader(crops, batch_size=2, sampler=range(stopped_at, stopped_at + 8))
    batches = list(resumed)
    assert len(batches) == 4
    assert all(same(left, right) for left, right in zip(batches, expected, strict=True))


def test_an_augmented_crop_is_filled_although_the_music_has_become_shorter():
    def without_every_twentieth(ids, random, composer):
        return np.delete(ids, np.arange(5, len(ids), 20))

    crops = Crops(pieces_of(1000), length=64, transform=without_every_twentieth)
    assert all(len(real_tokens(crop)) == 64 for crop in epoch_of(crops, 0))


def test_the_ending_of_a_piece_is_shown_although_the_music_has_become_longer():
    def with_every_token_twice(ids, random, composer):
        return np.repeat(ids, 2)

    crops = Crops(pieces_of(1000), length=64, transform=with_every_token_twice)
    assert sum(real_tokens(crop)[-1] == EOS for crop in epoch_of(crops, 0)) == 1


def test_evaluation_predicts_every_token_but_the_first_of_a_piece_exactly_once(pieces):
    predicted = []
    for example in EvaluationWindows(pieces, length=64):
        predicted += example["labels"][1:][example["labels"][1:] != -100].tolist()
    assert predicted == [token for ids in pieces["input_ids"] for token in ids[1:]]


def test_evaluation_windows_end(pieces):
    windows = EvaluationWindows(pieces, length=64)
    with pytest.raises(IndexError, match="number of windows"):
        windows[len(windows)]


def test_crops_have_no_negative_index(pieces):
    with pytest.raises(IndexError, match="-1"):
        Crops(pieces, length=64)[-1]


@pytest.mark.parametrize("windows", [Crops, EvaluationWindows])
def test_what_cannot_be_cut_into_windows_is_refused(pieces, windows):
    with pytest.raises(ValueError, match="empty"):
        windows(pieces.select([]), length=64)
    with pytest.raises(ValueError, match=r"length \(1\)"):
        windows(pieces, length=1)
    short = Dataset.from_dict({"name": ["good", "bad"], "input_ids": [[BOS, 5, EOS], [BOS]]}, features=FEATURES)
    with pytest.raises(ValueError, match=r"Row 1 .* 1 token"):
        windows(short, length=64)


def test_a_corpus_is_read_from_disk_in_shards_and_through_a_selection(pieces, tmp_path):
    DatasetDict(train=pieces, validation=pieces.select([4, 1])).save_to_disk(
        tmp_path / "corpus", num_shards={"train": 3, "validation": 1}
    )
    corpus = load_corpus(tmp_path / "corpus")
    assert [real_tokens(crop) for crop in epoch_of(Crops(corpus["train"], 64), 0)] == [
        real_tokens(crop) for crop in epoch_of(Crops(pieces, 64), 0)
    ]
    reversed_pieces = corpus["train"].select(range(len(pieces) - 1, -1, -1))
    assert real_tokens(EvaluationWindows(reversed_pieces, 200)[0]) == pieces[len(pieces) - 1]["input_ids"]


@pytest.fixture(scope="module")
def tokenizer():
    return MusicTxTokenizer()


def keys_down(tokenizer, ids):
    return [int(token[7:]) for token in tokenizer.convert_ids_to_tokens(ids.tolist()) if token.startswith("NoteOn_")]


def test_the_paper_s_augmentation_moves_by_three_semitones_and_stretches_by_a_twentieth(tokenizer, make_score):
    ids = np.array(tokenizer.encode(make_score(seconds=60), add_special_tokens=False), dtype=np.uint16)
    augment, random = CropTransform(tokenizer, len(ids)), np.random.default_rng(0)
    seconds = tokenizer.token_seconds[ids].sum()
    semitones, stretches = set(), set()
    for _ in range(100):
        augmented = augment(ids, random, "")
        semitones.add(sum(keys_down(tokenizer, augmented)) / len(keys_down(tokenizer, ids)))
        stretches.add(round(tokenizer.token_seconds[augmented].sum() / seconds, 3))
    mean = sum(keys_down(tokenizer, ids)) / len(keys_down(tokenizer, ids))
    assert sorted(round(moved - mean, 6) for moved in semitones) == [-3, -2, -1, 0, 1, 2, 3]
    assert sorted(stretches) == [0.95, 0.975, 1.0, 1.025, 1.05]


def test_music_at_the_edges_of_the_pitch_range_keeps_its_pitch(tokenizer):
    tokens = ["Velocity_62", "NoteOn_0", "NoteOn_127", "TimeShift_100", "NoteOff_0", "NoteOff_127"]
    ids = np.array(tokenizer.convert_tokens_to_ids(tokens))
    augment, random = CropTransform(tokenizer, len(ids)), np.random.default_rng(0)
    assert all(keys_down(tokenizer, augment(ids, random, "")) == [0, 127] for _ in range(20))


def test_crops_of_real_music_are_filled_after_augmentation(tokenizer, make_score):
    ids = tokenizer.encode(make_score(seconds=300), add_special_tokens=False)
    pieces = Dataset.from_dict({"name": ["long"], "input_ids": [[BOS, *ids, EOS]]}, features=FEATURES)
    crops = Crops(pieces, length=256, transform=CropTransform(tokenizer, 256))
    assert all(len(real_tokens(crops[index])) == 256 for index in range(5 * len(crops)))


@pytest.mark.parametrize("content", [None, "notes.txt"])
def test_a_folder_that_is_no_corpus_is_refused_with_the_way_to_make_one(tmp_path, content):
    folder = tmp_path / "nothing"
    if content:
        folder.mkdir()
        (folder / content).touch()
    with pytest.raises(FileNotFoundError, match=r"nothing is not a prepared corpus.*corpus\.prepare"):
        load_corpus(folder)
