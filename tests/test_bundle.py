"""A bundle holds a model with all its code: it loads where none of this project's packages can be imported."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_hub_round_trip import LOAD, PIPELINE, run

import hub.bundle
from evaluation.loading import load_model
from hub.contents import published_files
from hub.publish import check_folder

CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "maestro-small"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    assert hub.bundle.main([str(CHECKPOINT), "--output_dir", str(folder)]) == 0
    return folder


def test_the_shipped_checkpoint_keeps_no_code_and_its_bundle_can_be_published(folder):
    assert not list(CHECKPOINT.glob("*.py"))
    check_folder(folder)
    assert published_files(folder)[1] == []


def test_its_weights_and_card_are_those_of_the_checkpoint(folder):
    kept, written = (load_file(path / "model.safetensors") for path in (CHECKPOINT, folder))
    assert kept.keys() == written.keys()
    assert all(torch.equal(kept[name], written[name]) for name in kept)
    assert all(kept[name].dtype == written[name].dtype for name in kept)
    assert (folder / "README.md").read_bytes() == (CHECKPOINT / "README.md").read_bytes()


@pytest.fixture(scope="module")
def printed(folder, tmp_path_factory):
    """What one process without the packages prints: for the model and its tokenizer, then for the pipeline."""
    home = tmp_path_factory.mktemp("home")
    return run(LOAD + PIPELINE, home, None, repository=str(folder), revision=None)


def test_it_loads_and_generates_without_the_packages_and_gives_the_logits_of_the_packages(printed):
    model = load_model(str(CHECKPOINT)).cpu()
    with torch.no_grad():
        logits = model(torch.tensor([printed[0]["ids"]])).logits.double().sum().item()
    assert printed[0]["logits"] == pytest.approx(logits, rel=1e-5)


def test_its_pipeline_generates_music_without_the_packages(printed):
    assert printed[1] == "played"


def test_a_folder_that_is_not_empty_is_left_as_it_is(folder, capsys):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert hub.bundle.main([str(CHECKPOINT), "--output_dir", str(folder)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
