"""A report is the facts of a model card: measured, complete, and the same for the same seed."""

import json

import datasets
import pytest
import torch

from evaluation import report
from hub.card import Facts
from modeling_music_tx import MusicTxConfig, MusicTxForCausalLM
from tokenization import MusicTxTokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = MusicTxTokenizer()
    torch.manual_seed(0)
    MusicTxForCausalLM(MusicTxConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def corpus(make_score, tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    tokenizer = MusicTxTokenizer()
    rows = [{"name": str(seed), "input_ids": tokenizer(make_score(seed))["input_ids"]} for seed in range(3)]
    features = {"name": datasets.Value("string"), "input_ids": datasets.List(datasets.Value("uint16"))}
    split = datasets.Dataset.from_list(rows, features=datasets.Features(features))
    datasets.DatasetDict(dict.fromkeys(("train", "validation", "test"), split)).save_to_disk(folder)
    return folder


def write(model, corpus, output, seed):
    small = ["--length", "64", "--samples", "3", "--seconds", "1"]
    report.main(["--model", str(model), "--corpus", str(corpus), "--output", str(output), "--seed", str(seed), *small])
    return json.loads(output.read_text())


def test_a_report_holds_what_the_card_asks_of_it_and_repeats_with_its_seed(model, corpus, tmp_path):
    facts = write(model, corpus, tmp_path / "facts.json", seed=1)
    assert facts.keys() <= Facts.__dataclass_fields__.keys()
    # An untrained model knows nothing: every one of 391 tokens is as likely as the next.
    assert facts["nll"]["validation"] == pytest.approx(5.97, abs=0.1)
    assert facts["nll"]["validation"] == facts["nll"]["test"]
    assert facts["statistics"]["notes per second"].keys() == {"model", "validation"}
    assert write(model, corpus, tmp_path / "again.json", seed=1) == facts
    assert write(model, corpus, tmp_path / "other.json", seed=2)["statistics"] != facts["statistics"]


def test_beginnings_are_as_long_as_asked_for(corpus):
    tokenizer = MusicTxTokenizer()
    pieces = report.load_corpus(corpus)["validation"]
    for score in report.beginnings(pieces, tokenizer, seconds=2.0):
        starts = [note.time for note in score.to("second").tracks[0].notes]
        assert starts
        assert max(starts) <= 2.0
