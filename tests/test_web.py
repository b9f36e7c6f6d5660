"""The folder of a page holds programs and constants that equal Python's definitions, whole or not at all."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import RepoCard
from tiny_models import save_model

from hub import web
from tokenization import MusicTxTokenizer, PerformanceWithControls, midi_reader
from tokenization.grammar import PIANO, events_of

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """A folder of a model without controls, and of one with them."""
    tokenizers = {"plain": MusicTxTokenizer(), "controls": MusicTxTokenizer.from_miditok(PerformanceWithControls())}
    folder = tmp_path_factory.mktemp("models")
    return {name: save_model(folder / name, one, sliding_window=128) for name, one in tokenizers.items()}


@pytest.fixture(scope="module")
def pages(models, tmp_path_factory) -> dict[str, Path]:
    """What the command writes for each, without a page."""
    folder = tmp_path_factory.mktemp("pages")
    for name, model in models.items():
        assert web.main([str(model), "--output_dir", str(folder / name), "--model_only"]) == 0
    return {name: folder / name for name in models}


def constants_of(page):
    return json.loads((page / "model.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["plain", "controls"])
def test_constants_are_those_of_python(models, pages, name):
    constants, tokenizer = constants_of(pages[name]), MusicTxTokenizer.from_pretrained(models[name])
    assert constants["tokens"] == [tokenizer.convert_ids_to_tokens(id_) for id_ in range(len(tokenizer))]
    assert [tuple(event) for event in constants["events"]] == events_of(tokenizer)
    assert constants["grammar"]["PIANO"]["max_note_seconds"] == PIANO["max_note_seconds"]
    assert constants["midi"]["MAX_BYTES"] == midi_reader.MAX_BYTES
    assert constants["program"]["window"] == 128


def test_only_a_model_with_the_tokens_has_controls_and_infilling(pages):
    plain, controls = (constants_of(pages[name]) for name in ("plain", "controls"))
    assert plain["controls"] == []
    assert plain["infill"] is None
    assert [control["option"] for control in controls["controls"]] == [
        "composer",
        "density",
        "loudness",
        "note_length",
    ]
    first, stop = controls["controls"][1]["span"]
    assert controls["tokens"][first:stop] == [f"Density_{value}" for value in controls["controls"][1]["values"]]
    assert controls["tokens"][controls["infill"]["suffix"]] == "Infill_Suffix"


def test_the_chosen_program_is_there_in_its_size_with_what_it_costs(pages):
    program = constants_of(pages["plain"])["program"]
    assert (pages["plain"] / program["file"]).stat().st_size == program["bytes"]
    assert (pages["plain"] / "decoder.onnx").is_file()
    assert 0 <= program["lostNats"] <= web.MAX_LOST_NATS


def test_the_card_of_the_space_takes_its_license_from_the_model_and_isolates_the_page(models, tmp_path):
    shutil.copytree(models["plain"], tmp_path / "nocturne")
    (tmp_path / "nocturne" / "README.md").write_text("---\nlicense: mit\ndatasets: maestro\n---\n# Nocturne\n")
    assert web.main([str(tmp_path / "nocturne"), "--output_dir", str(tmp_path / "site"), "--model_only"]) == 0
    assert constants_of(tmp_path / "site")["card"] == {"license": "mit", "datasets": ["maestro"]}
    card = RepoCard.load(tmp_path / "site" / "README.md").data.to_dict()
    assert (card["sdk"], card["license"], card["datasets"]) == ("static", "mit", ["maestro"])
    assert card["custom_headers"]["cross-origin-opener-policy"] == "same-origin"


def test_eight_bits_that_cost_too_much_are_left_out(models, tmp_path, monkeypatch):
    monkeypatch.setattr(web, "MAX_LOST_NATS", -1)
    assert web.main([str(models["plain"]), "--output_dir", str(tmp_path / "site"), "--model_only"]) == 0
    assert constants_of(tmp_path / "site")["program"]["file"] == "decoder.onnx"
    assert not (tmp_path / "site" / "decoder.int8.onnx").exists()


def test_a_page_is_written_again_but_nothing_else_is_overwritten(models, tmp_path, capsys, monkeypatch):
    def fail(*args):
        raise ValueError("broken off")

    monkeypatch.setattr(web, "quantize_program", fail)
    site = tmp_path / "site"
    site.mkdir()
    (site / "thesis.txt").write_text("mine")
    arguments = [str(models["plain"]), "--output_dir", str(site), "--model_only"]
    assert web.main(arguments) == 2
    assert "holds files that are no page" in capsys.readouterr().err
    (site / "model.json").write_text("{}")
    assert web.main(arguments) == 2
    assert capsys.readouterr().err == "hub.web: broken off\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["site"]
    assert (site / "thesis.txt").read_text() == "mine"


def test_a_model_of_another_kind_is_refused_in_one_line(models, tmp_path, capsys):
    folder = save_model(tmp_path / "sines", MusicTxTokenizer(), position_embedding="sinusoidal")
    assert web.main([str(folder), "--output_dir", str(tmp_path / "site"), "--model_only"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "site").exists()
    assert web.main([str(tmp_path / "nothing"), "--output_dir", str(tmp_path / "site"), "--model_only"]) == 2
    assert "holds no model" in capsys.readouterr().err


def test_without_node_the_page_says_which_is_needed(models, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert web.main([str(models["plain"]), "--output_dir", str(tmp_path / "site")]) == 2
    assert f"Node {web.NODE} or newer" in capsys.readouterr().err
    assert not (tmp_path / "site").exists()


def test_the_command_tells_its_flags():
    run = subprocess.run([sys.executable, "-m", "hub.web", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0
    assert "--output_dir" in run.stdout
