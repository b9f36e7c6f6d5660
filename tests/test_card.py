"""The model card: every fact on it, none missing, and a snippet that plays."""

import json
import math
import re

import numpy as np
import pytest
from clean_process import run_clean
from huggingface_hub import ModelCard
from safetensors.numpy import save_file
from tiny_models import save_model

from hub.card import main
from hub.publish import check_folder
from tokenization import MusicTxTokenizer

FACTS = {
    "repository": "someone/nocturne",
    "license": "cc-by-nc-sa-4.0",
    "dataset": "MAESTRO v2.0.0",
    "dataset_id": "maestro",
    "dataset_url": "https://magenta.tensorflow.org/datasets/maestro",
    "dataset_license": "CC BY-NC-SA 4.0",
    "training_data": "The training split, transposed by up to three semitones.",
    "recipe": "accelerate launch train.py recipes/maestro_small.yaml",
    "tokens_seen": 1234567,
    "hardware": "two cores, one hour",
    "window": 1024,
    "nll": {"validation": 2.5, "test": 2.25},
    "statistics": {"notes per second": {"model": 8.125, "validation": 9.5}},
    "memorization": "No sample was compared with the training data.",
}

# The environment of the tests may have the packages installed; a reader of the card has not.


@pytest.fixture
def folder(tmp_path):
    """A folder with a config and weights: all that the card reads of it."""
    folder = tmp_path / "nocturne"
    folder.mkdir()
    shape = {"num_hidden_layers": 3, "hidden_size": 24, "num_attention_heads": 2}
    (folder / "config.json").write_text(json.dumps(shape | {"max_relative_distance": 16, "vocab_size": 391}))
    save_file({"embedding": np.zeros((391, 8), np.float32), "bias": np.zeros(72)}, folder / "model.safetensors")
    return folder


def write(folder, facts, *more):
    """Run the command on facts written to files; its exit code."""
    paths = []
    for number, part in enumerate((facts, *more)):
        paths.append(folder.parent / f"facts{number}.json")
        paths[-1].write_text(json.dumps(part))
    return main([str(folder), "--facts", *map(str, paths)])


def test_the_hub_reads_the_metadata(folder):
    assert write(folder, FACTS) == 0
    data = ModelCard.load(folder / "README.md").data
    assert (data.license, data.library_name, data.datasets) == ("cc-by-nc-sa-4.0", "transformers", ["maestro"])
    assert data.pipeline_tag == "text-generation"
    assert {(result.dataset_split, result.metric_value) for result in data.eval_results} == {
        ("validation", 2.5),
        ("test", 2.25),
    }


def test_every_fact_is_on_the_card_and_no_placeholder_is_left(folder):
    write(folder, FACTS)
    text = ModelCard.load(folder / "README.md").text
    for fact in ("training_data", "recipe", "hardware", "memorization", "dataset_url", "dataset_license"):
        assert FACTS[fact] in text
    for line in (
        "| parameters | 3,200 |",
        "| layers, width, heads | 3, 24, 2 |",
        "- Tokens seen: 1,234,567",
        "| validation | 2.500 |",
        "| test | 2.250 |",
        "| notes per second | 8.12 | 9.5 |",
    ):
        assert line in text.splitlines()
    assert not re.search(r"[{}]{2}|{%|None|undefined|TODO", text.replace('inputs = {"input_ids"', ""))


@pytest.mark.parametrize("fact", FACTS)
@pytest.mark.parametrize("gap", ["missing", "empty"])
def test_a_gap_in_the_facts_is_named_and_no_card_is_written(folder, capsys, fact, gap):
    facts = {name: value for name, value in FACTS.items() if name != fact}
    assert write(folder, facts if gap == "missing" else facts | {fact: ""}) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"facts: {fact};" in error
    assert not (folder / "README.md").exists()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"perplexity": 12}, "perplexity"),
        ({"nll": {"validation": math.nan}}, "finite"),
        ({"statistics": {"polyphony": {"model": 3.0}}}, "polyphony"),
        ({"overlap": {"silence": {"validation": 0.9}}}, "silence"),
        ({"overlap": {"silence": {"model": math.inf, "validation": 0.9}}}, "finite"),
        ({"license": ["mit"]}, "license"),
        ({"repository": 3}, "repository"),
        ({"repository": 'a/b", trust_remote_code=True)\nimport os #'}, "repository"),
        ({"dataset_url": "javascript:alert(1)"}, "dataset_url"),
        ({"tokens_seen": "many"}, "tokens_seen"),
        ({"tokens_seen": True}, "tokens_seen"),
        ({"nll": [2.5]}, "nll"),
        ({"nll": {"validation": "2.5"}}, "finite"),
        ({"statistics": [["polyphony", 3.0]]}, "statistics"),
        ({"statistics": {"polyphony": 3.0}}, "polyphony"),
        ({"overlap": {"silence": ["model", "validation"]}}, "silence"),
        ({"nll": {"validation": True}}, "finite"),
        ({"nll": {"validation": 10**400}}, "finite"),
        ({"window": -1}, "window is -1"),
    ],
)
def test_a_fact_that_cannot_be_meant_is_refused(folder, capsys, change, word):
    assert write(folder, FACTS | change) == 2
    assert word in capsys.readouterr().err
    assert not (folder / "README.md").exists()


def test_facts_that_are_no_object_end_in_one_line(folder, capsys):
    assert write(folder, ["license"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    (folder / "deep.json").write_text(100_000 * "[")
    assert main([str(folder), "--facts", str(folder / "deep.json")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_html_and_control_characters_in_facts_do_not_work_on_the_card(folder):
    outside = "<img src=x onerror=alert(1)> \x1b[2J | `"
    texts = ("license", "dataset", "dataset_license", "training_data", "recipe", "hardware", "memorization")
    assert write(folder, FACTS | dict.fromkeys(texts, outside) | {"dataset_id": "maestro"}) == 0
    text = ModelCard.load(folder / "README.md").text
    # What stands in a code span is not rendered.
    assert text.count("<img") == text.count("Recipe: `<img") == 1
    assert "\x1b" not in text


def test_the_template_lists_every_fact_for_filling_in(folder, capsys):
    assert main(["--template"]) == 0
    template = json.loads(capsys.readouterr().out)
    assert template.keys() == FACTS.keys() | {"overlap"}
    assert write(folder, template) == 2
    assert write(folder, template, FACTS) == 0
    assert main([]) == 2
    assert "--template" in capsys.readouterr().err


def test_the_snippet_plays_on_a_machine_that_has_only_transformers(tmp_path):
    published = save_model(tmp_path / "published", MusicTxTokenizer())
    assert write(published, FACTS | {"repository": str(published)}) == 0
    check_folder(published)

    (snippet,) = re.findall(r"```python\n(.*?)```", (published / "README.md").read_text(), re.DOTALL)
    snippet = snippet.replace("max_new_tokens=1024", "max_new_tokens=32")
    process = run_clean(snippet, tmp_path)
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "sample.mid").read_bytes().startswith(b"MThd")


def test_facts_come_from_several_files_and_the_last_word_counts(folder):
    training = {name: value for name, value in FACTS.items() if name not in ("nll", "statistics")}
    evaluation = {"nll": {"validation": 1.875}, "statistics": FACTS["statistics"], "hardware": "one GPU"}
    assert write(folder, training, evaluation) == 0
    text = (folder / "README.md").read_text()
    assert "| validation | 1.875 |" in text
    assert "one GPU" in text


def test_how_like_the_training_split_the_music_is_stands_in_a_table_where_it_was_measured(folder):
    write(folder, FACTS)
    without = (folder / "README.md").read_text()
    write(folder, FACTS, {"overlap": {"notes per second": {"model": 0.875, "validation": 0.981}}})
    text = (folder / "README.md").read_text()
    assert "Yang & Lerch" not in without
    table = "| | this model | MAESTRO v2.0.0, validation |\n|---|---|---|\n| notes per second | 0.88 | 0.98 |"
    assert f"\n\n{table}\n\n## Limits\n" in text
    assert text.startswith(without[: without.index("## Limits")])


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_damaged_model_ends_in_one_line(folder, capsys, name):
    (folder / name).write_text("[]")
    assert write(folder, FACTS) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert name in error


def test_a_folder_without_a_model_is_refused(folder, capsys):
    (folder / "model.safetensors").unlink()
    assert write(folder, FACTS) == 2
    assert "model.safetensors" in capsys.readouterr().err
