"""The likelihood of a split is one number: every token counted once, whatever the batch, the window or the share."""

import json
import math

import datasets
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from tiny_models import make_model
from torch.utils.data import Subset

from corpus.dataset import EvaluationWindows
from evaluation.likelihood import (
    Amount,
    ContextWindows,
    Scores,
    amount_of_music,
    main,
    negative_log_likelihood,
    score,
    summarize,
)
from modeling_music_tx import MusicTxConfig, MusicTxForCausalLM
from tokenization import MusicTxTokenizer


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return MusicTxForCausalLM(MusicTxConfig(vocab_size=30, hidden_size=32, num_hidden_layers=2, initializer_range=0.3))


@pytest.fixture(scope="module")
def windows():
    """Five windows of 12, the last one padded beyond its seventh token."""
    ids = torch.randint(3, 30, (5, 12), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[4, 7:] = -100
    return [{"input_ids": row, "labels": label} for row, label in zip(ids, labels, strict=True)]


@pytest.fixture(scope="module")
def pieces():
    """Pieces shorter than a window of 10, as long, a token longer, and much longer."""
    rng = np.random.default_rng(0)
    rows = [{"input_ids": rng.integers(3, 30, length).tolist()} for length in (2, 10, 11, 37)]
    features = datasets.Features({"input_ids": datasets.List(datasets.Value("uint16"))})
    return datasets.Dataset.from_list(rows, features=features)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_it_is_the_sum_over_every_labelled_token_but_the_first_of_each_window(model, windows, batch_size):
    nats, hits, tokens = np.zeros((3, 12))
    with torch.no_grad():
        for window in windows:
            probabilities = model(window["input_ids"][None]).logits[0].softmax(-1)
            for place in range(1, 12):
                if window["labels"][place] >= 0:
                    nats[place] -= math.log(probabilities[place - 1, window["labels"][place]])
                    hits[place] += probabilities[place - 1].argmax() == window["labels"][place]
                    tokens[place] += 1
    scores = score(model, windows, batch_size)
    assert scores.nats == pytest.approx(nats, rel=1e-5)
    assert scores.hits.tolist() == hits.tolist()
    assert scores.tokens.tolist() == tokens.tolist()
    result = negative_log_likelihood(model, windows, batch_size)
    assert result.tokens == 4 * 11 + 6
    assert result.nats == pytest.approx(nats.sum(), rel=1e-5)
    assert result.nats_per_token == pytest.approx(nats.sum() / tokens.sum(), rel=1e-5)


def test_the_model_is_left_in_the_mode_it_came_in(model, windows):
    model.train()
    negative_log_likelihood(model, windows)
    assert model.training
    model.eval()
    negative_log_likelihood(model, windows)
    assert not model.training


def test_without_context_the_windows_are_those_of_the_corpus(pieces):
    ours, theirs = ContextWindows(pieces, 10), EvaluationWindows(pieces, 10)
    assert len(ours) == len(theirs)
    for index in range(len(theirs)):
        assert ours[index]["input_ids"].tolist() == theirs[index]["input_ids"].tolist()
        # The first label is not used.
        assert ours[index]["labels"][1:].tolist() == theirs[index]["labels"][1:].tolist()


@pytest.mark.parametrize("context", [1, 3, 5, 9])
def test_every_token_but_the_first_is_predicted_once_with_the_context_before_it(pieces, context):
    windows = ContextWindows(pieces, 10, context)
    predicted = {row: [] for row in range(len(pieces))}
    for index in range(len(windows)):
        row, start, example = int(windows.row[index]), int(windows.start[index]), windows[index]
        ids = pieces[row]["input_ids"]
        for place in range(1, 10):
            if example["labels"][place] >= 0:
                assert example["labels"][place] == example["input_ids"][place] == ids[start + place]
                assert start == 0 or place >= context
                predicted[row].append(start + place)
    assert predicted == {row: list(range(1, len(pieces[row]["input_ids"]))) for row in predicted}


def test_a_longer_context_is_of_use_to_a_model_that_looks_back():
    class Copyist(torch.nn.Linear):
        """A model that predicts the token eight places earlier."""

        def forward(self, input_ids, use_cache):
            logits = torch.zeros(*input_ids.shape, 30)
            logits[:, 7:].scatter_(2, input_ids[:, : input_ids.shape[1] - 7, None], 20.0)
            return type("Output", (), {"logits": logits})

    rows = [{"input_ids": [*range(3, 11)] * 8}]
    pieces = datasets.Dataset.from_list(
        rows, features=datasets.Features({"input_ids": datasets.List(datasets.Value("uint16"))})
    )
    short, long = (score(Copyist(1, 1), ContextWindows(pieces, 16, context)) for context in (1, 8))
    assert short.tokens.sum() == long.tokens.sum() == 63
    assert long.hits.sum() == 63 - 7
    assert short.hits.sum() < long.hits.sum()
    assert long.nats.sum() == pytest.approx(7 * math.log(30), rel=0.01)


@pytest.mark.parametrize("context", [0, 10])
def test_a_context_that_leaves_nothing_to_predict_is_refused(pieces, context):
    with pytest.raises(ValueError, match=rf"context \({context}\) must be from 1 to 9"):
        ContextWindows(pieces, 10, context)


@pytest.mark.parametrize("shares", [2, 3])
def test_shares_of_the_windows_add_up_to_the_whole(model, pieces, shares):
    windows = ContextWindows(pieces, 10, 5)
    whole = score(model, windows)
    parts = [score(model, Subset(windows, range(first, len(windows), shares))) for first in range(shares)]
    assert sum(part.nats for part in parts) == pytest.approx(whole.nats, rel=1e-6)
    assert sum(part.tokens for part in parts).tolist() == whole.tokens.tolist()


def test_the_numbers_are_per_token_per_note_and_per_second():
    scores = Scores(np.array([0.0, 6.0, 2.0]), np.array([0.0, 1.0, 1.0]), np.array([0.0, 2.0, 2.0]))
    assert summarize(scores, Amount(notes=2, seconds=0.5)) == {
        "nats_per_token": 2.0,
        "nats_per_note": 4.0,
        "nats_per_second": 16.0,
        "accuracy": 0.5,
        "tokens": 4,
        "notes": 2,
        "seconds": 0.5,
        "curve": [None, 3.0, 1.0],
    }


def test_an_amount_of_music_is_what_its_tokens_tell(make_score):
    tokenizer = MusicTxTokenizer()
    scores = [make_score(seed, seconds=5.0) for seed in range(2)]
    amount = amount_of_music([tokenizer.encode(score) for score in scores], tokenizer)
    assert amount.notes == sum(score.note_num() for score in scores)
    assert amount.seconds == pytest.approx(
        sum(tokenizer.to_score(tokenizer.encode(score)).end() for score in scores) / 1000
    )


@pytest.fixture
def folders(make_score, tmp_path):
    """A corpus of two validation pieces, and an untrained model for it."""
    tokenizer = MusicTxTokenizer()
    rows = [
        {"name": f"{seed}.mid", "input_ids": [*tokenizer.encode(make_score(seed, seconds=4.0)), 2]} for seed in (0, 1)
    ]
    features = datasets.Features(
        {"name": datasets.Value("string"), "input_ids": datasets.List(datasets.Value("uint16"))}
    )
    split = datasets.Dataset.from_list(rows, features=features)
    datasets.DatasetDict(train=split, validation=split, test=split).save_to_disk(tmp_path / "corpus")
    tokenizer.save_pretrained(tmp_path / "corpus" / "tokenizer")
    make_model(tokenizer).save_pretrained(tmp_path / "model")
    yield tmp_path, sum(len(row["input_ids"]) - 1 for row in rows)
    # The accelerator would stay as it is for the tests to come.
    AcceleratorState._reset_state()
    PartialState._reset_state()


def test_the_command_line_prints_the_numbers_and_writes_the_curve(folders, capsys):
    folder, tokens = folders
    words = ["--model", str(folder / "model"), "--corpus", str(folder / "corpus"), "--length", "64", "--context", "32"]
    main([*words, "--output", str(folder / "likelihood.json")])
    written = json.loads((folder / "likelihood.json").read_text())
    assert written["tokens"] == tokens
    assert written["nats_per_token"] == pytest.approx(math.log(391), abs=0.1)
    assert len(written["curve"]) == 64
    said = capsys.readouterr()
    assert f"validation: {written['nats_per_token']:.4f} nats per token, {written['nats_per_note']:.4f}" in said.out
    assert "batch" not in said.err  # no progress bar, for it is no terminal


def test_ctrl_c_ends_in_one_line_and_code_130(folders, capsys, monkeypatch):
    folder, _ = folders

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("evaluation.likelihood.score", interrupted)
    assert main(["--model", str(folder / "model"), "--corpus", str(folder / "corpus"), "--length", "64"]) == 130
    assert capsys.readouterr().err.count("\n") == 1


def test_pickled_weights_are_refused_in_one_line(folders, capsys):
    folder, _ = folders
    (folder / "model" / "model.safetensors").unlink()
    torch.save({}, folder / "model" / "pytorch_model.bin")
    assert main(["--model", str(folder / "model"), "--corpus", str(folder / "corpus")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "model.safetensors" in line


def test_a_mistake_ends_in_one_line_and_code_2(folders, capsys):
    folder, _ = folders
    for words, complaint in {
        ("--model", str(folder), "--corpus", str(folder / "corpus")): "config.json",
        ("--model", str(folder / "model"), "--corpus", str(folder / "absent")): "absent is not a prepared corpus",
        ("--model", "m", "--corpus", str(folder / "corpus"), "--context", "1024"): r"context (1024) must be from 1",
    }.items():
        assert main(list(words)) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert complaint in line
