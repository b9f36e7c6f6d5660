"""Checkpoints are written whole, verified, rotated, and continued to the same end."""

import json
import os
import resource
import shutil
import stat
import subprocess
import sys
import time

import pytest
from safetensors.torch import save_file
from tiny_training import (
    SHAPE,
    STEADY,
    TINY,
    assert_goes_on_to_the_same_end,
    before_step,
    flags,
    names,
    poison,
    run,
    spoil_gradient,
    stopped,
)

import train
from corpus.atomic_files import sha256
from modeling_music_tx import MusicTxConfig
from training.checkpoints import check_same_run
from training.recipe import CONFIG_FIELDS, Recipe


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(corpus, steady, tmp_path):
    run(corpus, tmp_path, STEADY, {"max_steps": 3})
    assert_goes_on_to_the_same_end(corpus, tmp_path, steady)
    # What was measured before is not forgotten.
    assert list(json.loads((tmp_path / "run.json").read_text())["validation_nats_per_token"]) == ["6"]


@pytest.mark.parametrize("damage", ["truncated", "altered", "no manifest", "emptied"])
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(damage, corpus, steady, tmp_path, capsys):
    for name in ("checkpoint-3", "checkpoint-6"):
        shutil.copytree(steady / name, tmp_path / name)
    state = tmp_path / "checkpoint-6" / "state.safetensors"
    if damage == "truncated":
        os.truncate(state, 1000)
    elif damage == "altered":
        content = bytearray(state.read_bytes())
        content[-1] ^= 1
        state.write_bytes(content)
    elif damage == "no manifest":
        (tmp_path / "checkpoint-6" / "manifest.json").unlink()
    else:
        for path in state.parent.iterdir():
            path.write_text("")
    assert_goes_on_to_the_same_end(corpus, tmp_path, steady)
    assert "checkpoint-6 is not a complete checkpoint" in capsys.readouterr().out


def test_a_run_killed_while_it_saves_goes_on_to_the_same_end(corpus, steady, tmp_path):
    command = [sys.executable, train.__file__, *flags(corpus, tmp_path / "run", STEADY, {"save_steps": 1})]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        # Slowly while it starts, which takes seconds, then fast enough to see a folder that exists for milliseconds.
        while process.poll() is None and not names(tmp_path / "run", ".checkpoint-4.unfinished-*"):
            time.sleep(0.0005 if names(tmp_path / "run", "*checkpoint*") else 0.05)
        process.kill()
        process.wait()
    assert not (tmp_path / "run" / "model.safetensors").exists(), (tmp_path / "log").read_text()
    assert names(tmp_path / "run", "checkpoint*")
    assert_goes_on_to_the_same_end(corpus, tmp_path / "run", steady)
    assert not names(tmp_path / "run", ".*")


def test_a_full_disk_ends_in_one_line_and_leaves_the_last_checkpoint(corpus, steady, tmp_path, capsys, monkeypatch):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before_step(monkeypatch, 4, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1])))
    try:
        assert stopped(corpus, tmp_path, STEADY) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (line,) = capsys.readouterr().err.splitlines()
    assert "File too large" in line
    assert "--resume_from_checkpoint latest" in line
    assert names(tmp_path, "*checkpoint*") == ["checkpoint-3"]
    monkeypatch.undo()
    assert_goes_on_to_the_same_end(corpus, tmp_path, steady)


def test_old_checkpoints_are_removed_and_nothing_is_pickled(corpus, tmp_path):
    run(corpus, tmp_path, TINY, SHAPE, {"save_steps": 1, "save_total_limit": 2, "max_steps": 4})
    assert names(tmp_path, "*checkpoint*") == ["checkpoint-3", "checkpoint-4"]
    assert not names(tmp_path, ".*")
    assert {path.suffix for path in tmp_path.glob("checkpoint-*/*")} == {".json", ".safetensors"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_hidden_layers": 1}, "num_hidden_layers 2"),
        ({"optimizer": "adamw"}, "optimizer muon"),
        ({"max_steps": 2}, "has done 3 steps already"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(fields, message, corpus, steady, tmp_path, capsys):
    checkpoint = {"resume_from_checkpoint": steady / "checkpoint-3"}
    assert stopped(corpus, tmp_path, STEADY, fields, checkpoint) == 2
    assert message in capsys.readouterr().err


def test_a_checkpoint_of_before_a_field_existed_is_continued_as_if_it_had_its_default(tmp_path):
    config = {name: getattr(MusicTxConfig(), name) for name in CONFIG_FIELDS}
    now = {"shape": config, "recipe": vars(Recipe("", "")), "corpus_fingerprint": "same"}
    then = {
        "shape": {name: value for name, value in config.items() if name != "sliding_window"},
        "recipe": {name: value for name, value in now["recipe"].items() if name != "lora_rank"},
        "corpus_fingerprint": "same",
    }
    check_same_run(tmp_path, then, now)
    with pytest.raises(ValueError, match="sliding_window None, and this one has 64"):
        check_same_run(tmp_path, then, now | {"shape": config | {"sliding_window": 64}})


def test_a_folder_with_the_checkpoints_of_another_run_is_left_alone_without_overwrite(corpus, tmp_path, capsys):
    run(corpus, tmp_path, STEADY)
    before = names(tmp_path, "*")
    capsys.readouterr()
    assert stopped(corpus, tmp_path, STEADY) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "of an earlier run; continue it with --resume_from_checkpoint latest" in line
    assert names(tmp_path, "*") == before
    run(corpus, tmp_path, STEADY, {"overwrite": True, "max_steps": 2, "save_steps": 2})
    assert names(tmp_path, "checkpoint*") == ["checkpoint-2"]


def test_every_file_can_be_read_by_those_who_can_read_the_others(steady):
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in steady.rglob("*") if path.is_file()}
    assert {"model.safetensors", "state.safetensors", "config.json"} <= modes.keys()
    assert len(set(modes.values())) == 1, modes


@pytest.mark.parametrize("lost", ["scaler", "run", "recipe", "step", "weights"])
def test_a_checkpoint_that_lacks_a_field_ends_in_one_line(lost, corpus, steady, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "checkpoint-3"
    shutil.copytree(steady / "checkpoint-3", folder)
    record = json.loads((folder / "run.json").read_text())
    (record["run"] if lost == "recipe" else record).pop(lost, None)
    (folder / "run.json").write_text(json.dumps(record))
    if lost == "weights":
        save_file({}, folder / "state.safetensors")
    manifest = {name: sha256(folder / name) for name in ("state.safetensors", "run.json")}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    code = stopped(corpus, tmp_path, STEADY, {"resume_from_checkpoint": "latest"})
    if lost == "scaler":  # needed under fp16 alone
        assert code == 0
        return
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "checkpoint-3 does not have the fields of this version's checkpoints" in line


def test_after_a_divergence_the_advice_names_a_checkpoint_from_before_it(corpus, tmp_path, capsys, monkeypatch):
    poison(monkeypatch, {4, 5}, spoil_gradient)
    fields = {"save_steps": 1, "save_total_limit": 1, "max_skipped_steps": 1}
    assert stopped(corpus, tmp_path, STEADY, fields) == 2
    (line,) = capsys.readouterr().err.splitlines()
    # The weights of step 4 gave the first loss or gradient that was not finite.
    assert line.endswith(
        f"continue with --resume_from_checkpoint {tmp_path}/checkpoint-3, which is from before the first skipped step."
    )
    assert names(tmp_path, "checkpoint*") == ["checkpoint-3", "checkpoint-4"]


def test_after_a_divergence_without_an_earlier_checkpoint_the_advice_is_to_start_over(
    corpus, tmp_path, capsys, monkeypatch
):
    poison(monkeypatch, {1, 2}, spoil_gradient)
    assert stopped(corpus, tmp_path, STEADY, {"max_skipped_steps": 1}) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "start over with --overwrite true: no checkpoint is from before the first skipped step." in line
