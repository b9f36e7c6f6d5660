"""A report holds all that is measured, on a page, in pictures and for the card, and is the same for the same seed."""

import json
import re

import datasets
import numpy as np
import pytest
from symusic import Score
from tiny_models import save_model

from evaluation import report
from evaluation.metrics import score_to_arrays, tabulate
from evaluation.page import facts_for_card, write_page
from evaluation.sampling import excerpt_scores, sample_scores
from hub.card import Facts
from modeling_music_tx import MusicTxForCausalLM
from tokenization import MusicGrammar, MusicTxTokenizer, PerformanceWithControls

SECONDS = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), MusicTxTokenizer())


@pytest.fixture(scope="module")
def corpus(make_score, tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    tokenizer = MusicTxTokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    features = {"name": datasets.Value("string"), "input_ids": datasets.List(datasets.Value("uint16"))}
    splits = {}
    for number, name in enumerate(("train", "validation", "test")):
        seeds = range(10 * number, 10 * number + 4)
        rows = [{"name": str(seed), "input_ids": tokenizer(make_score(seed))["input_ids"]} for seed in seeds]
        splits[name] = datasets.Dataset.from_list(rows, features=datasets.Features(features))
    datasets.DatasetDict(splits).save_to_disk(folder)
    return folder


def write(model, corpus, output, *more):
    small = ["--length", "64", "--num_samples", "3", "--seconds", str(SECONDS), "--splits", "validation", "test"]
    code = report.main(["--model", str(model), "--corpus", str(corpus), "--output_dir", str(output), *small, *more])
    assert code == 0
    return json.loads((output / "report.json").read_text())


@pytest.fixture(scope="module")
def folder(model, corpus, tmp_path_factory):
    """A folder with a report."""
    folder = tmp_path_factory.mktemp("report")
    write(model, corpus, folder, "--seed", "1")
    return folder


@pytest.fixture(scope="module")
def measured(folder):
    return json.loads((folder / "report.json").read_text())


def test_the_same_seed_writes_the_same_bytes_and_another_one_other_music(model, corpus, folder, tmp_path):
    write(model, corpus, tmp_path / "again", "--seed", "1")
    for path in folder.rglob("*.*"):
        again = tmp_path / "again" / path.relative_to(folder)
        assert again.read_bytes().replace(bytes(tmp_path / "again"), bytes(folder)) == path.read_bytes(), path.name
    other = write(model, corpus, tmp_path / "other", "--seed", "2", "--splits")
    assert other["statistics"]["model"] != json.loads((folder / "report.json").read_text())["statistics"]["model"]


def test_an_untrained_model_knows_nothing(measured):
    # Every one of 391 tokens is as likely as the next.
    assert measured["likelihood"].keys() == {"validation", "test"}
    assert measured["likelihood"]["validation"]["nats_per_token"] == pytest.approx(5.97, abs=0.1)


def test_the_statistics_are_those_of_the_samples_that_were_written(folder, measured):
    table = tabulate(Score(path) for path in sorted((folder / "samples").glob("*.mid")))
    assert len(table["notes"]) == 3
    for name, (mean, deviation) in measured["statistics"]["model"].items():
        assert (table[name].mean(), table[name].std()) == pytest.approx((mean, deviation), rel=1e-6, abs=1e-9)


def test_real_music_stands_beside_the_model_in_every_row(measured):
    assert list(measured["statistics"]) == ["model", "validation", "training"]
    assert list(measured["comparison"]) == ["model", "validation"]
    assert measured["comparison"]["model"].keys() == measured["comparison"]["validation"].keys()
    overlaps = {label: compared["pitch_mean"]["overlap"] for label, compared in measured["comparison"].items()}
    for value, low, high in overlaps.values():
        assert 0 <= low <= high <= 1
        assert 0 <= value <= 1
    assert overlaps["validation"][0] > overlaps["model"][0]


def test_samples_were_looked_for_in_the_training_split(measured):
    found = measured["originality"]
    assert found["found"].keys() == {"1.mid", "2.mid", "3.mid"}
    assert found["pieces"] == 4
    assert not any(piece["is_copy"] for piece in found["found"].values())


def test_a_sample_that_is_a_training_piece_is_called_a_copy(corpus, make_score, tmp_path):
    splits, tokenizer = report.load_corpus(corpus), MusicTxTokenizer()
    index = report.originality.index_corpus(splits["train"], splits["validation"], tokenizer)
    paths = [tmp_path / "copy.mid", tmp_path / "other.mid"]
    for seed, path in zip((2, 99), paths, strict=True):
        tokenizer.to_score(tokenizer(make_score(seed))["input_ids"]).dump_midi(path)
    found = report.measure_originality(paths, index, tmp_path / "passages")
    assert [piece["is_copy"] for piece in found["found"].values()] == [True, False]
    (line,) = found["lines"]
    assert line.startswith("copy.mid: COPY")
    assert (tmp_path / "passages" / "copy-training.mid").exists()


def test_the_page_shows_the_pictures_that_lie_beside_it_and_every_statistic(folder, measured):
    page = (folder / "report.md").read_text()
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", page)
    assert pictures == ["histograms.png", "self_similarity.png", "attention.png"]
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    for name in (*measured["statistics"]["model"], *measured["histograms"]["model"]):
        assert f"| {name.replace('_', ' ')} |" in page


def test_the_facts_are_such_as_the_card_asks_for(folder):
    facts = json.loads((folder / "facts.json").read_text())
    assert facts.keys() <= Facts.__dataclass_fields__.keys()
    assert facts["window"] == 64
    assert facts["nll"].keys() == {"validation", "test"}
    assert facts["statistics"]["notes per second"].keys() == {"model", "validation"}
    assert facts["overlap"]["pitch classes"].keys() == {"model", "validation"}
    assert "None of the 3 pieces exceeds that" in facts["memorization"]


def test_a_model_with_controls_has_them_and_its_infilling_on_the_page(corpus, tmp_path):
    tokenizer = MusicTxTokenizer.from_miditok(PerformanceWithControls())
    model = save_model(tmp_path / "model", tokenizer)
    measured = write(model, corpus, tmp_path / "report", "--splits")
    assert measured["controls"]["pieces"] == 2
    assert measured["controls"]["correlations"].keys() == {"density", "loudness", "note_length"}
    # Every one of 451 tokens is as likely as the next.
    assert measured["infilling"]["infilling"] == pytest.approx(6.11, abs=0.1)
    page = (tmp_path / "report" / "report.md").read_text()
    assert page.index("## Originality") < page.index("## Controls") < page.index("## Infilling")
    assert "| note length |" in page


def test_a_model_without_them_has_neither(measured):
    assert not {"controls", "infilling"} & measured.keys()
    assert "Controls" not in write_page(measured)


def test_without_a_likelihood_there_is_none_on_page_and_card(measured):
    measured = measured | {"likelihood": {}}
    assert not {"nll", "window"} & facts_for_card(measured).keys()
    assert "Likelihood" not in write_page(measured)


def test_excerpts_are_cut_at_the_token_that_reaches_the_time_and_all_notes_end_there(corpus):
    tokenizer = MusicTxTokenizer()
    pieces = report.load_corpus(corpus)["validation"].with_format("numpy")["input_ids"]
    for ids, score in zip(pieces, excerpt_scores(pieces, tokenizer, SECONDS), strict=True):
        whole, notes = score_to_arrays(tokenizer.to_score(ids)), score_to_arrays(score)
        elapsed = tokenizer.token_seconds[ids].cumsum()
        end = elapsed[elapsed >= SECONDS - 0.001][0]
        assert notes.start == pytest.approx(whole.start[whole.start < end - 0.001])
        assert notes.end == pytest.approx(np.minimum(whole.end[: len(notes.end)], end), abs=1e-4)


def test_generated_pieces_are_well_formed_and_have_the_requested_length(model):
    tokenizer = MusicTxTokenizer()
    scores = sample_scores(MusicTxForCausalLM.from_pretrained(model), tokenizer, 3, SECONDS, seed=0, min_p=0.05)
    assert len(scores) == 3
    for score in scores:
        # The last shift of time is of a second at most.
        assert score_to_arrays(score).end.max() < SECONDS + 1
        assert MusicGrammar(tokenizer).violations(tokenizer(score)["input_ids"]) == []


def test_names_on_the_page_are_text_and_not_html_or_markdown(measured):
    outside = {"settings": measured["settings"] | {"model": "runs/<b>*m*"}}
    outside["originality"] = measured["originality"] | {"lines": ["1.mid: original; as in <script>a</script> [x](y)"]}
    page = write_page(measured | outside)
    assert "<" not in page
    assert r"# Evaluation of &lt;b>\*m\*" in page
    assert r"\[x\](y)" in page


def test_ctrl_c_ends_in_one_line_and_code_130(model, corpus, tmp_path, capsys, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "sample_scores", interrupted)
    words = ["--model", str(model), "--corpus", str(corpus), "--output_dir", str(tmp_path / "out")]
    assert report.main([*words, "--splits", "--length", "64"]) == 130
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (["--num_samples", "0"], "at least 1"),
        (["--corpus", "nowhere"], "not a prepared corpus"),
        (["--model", "nowhere"], "nowhere holds no model"),
    ],
)
def test_a_mistake_ends_in_one_line(model, corpus, tmp_path, capsys, change, word):
    assert (
        report.main(["--model", str(model), "--corpus", str(corpus), "--output_dir", str(tmp_path / "out"), *change])
    ) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("python -m evaluation.report: ")
    assert word in error
    assert not (tmp_path / "out").exists()


def test_a_corpus_in_other_tokens_is_refused(model, corpus, tmp_path, capsys):
    other = tmp_path / "corpus"
    datasets.DatasetDict(report.load_corpus(corpus)).save_to_disk(other)
    tokenizer = MusicTxTokenizer()
    tokenizer.add_tokens(["Applause"])
    tokenizer.save_pretrained(other / "tokenizer")
    words = ["--model", str(model), "--corpus", str(other), "--output_dir", str(tmp_path / "out")]
    assert report.main(words) == 2
    assert "the same tokens" in capsys.readouterr().err
