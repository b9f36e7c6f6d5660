"""A training does what its recipe says, ends in a folder that loads, and survives whatever stops it."""

import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import train
from hub.publish import check_folder
from modeling_music_tx import MusicTxConfig
from tokenization import MusicTxTokenizer
from training.checkpoints import check_same_run
from training.recipe import CONFIG_FIELDS

# All but the configurations of accelerate.
RECIPES = sorted(Path(train.__file__).with_name("recipes").glob("[!a]*.yaml"))
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_relative_distance": 64,
    "attention_dropout": 0.1,
}
TINY = {
    "sequence_length": 64,
    "batch_size": 2,
    "max_steps": 6,
    "learning_rate": 1e-2,
    "warmup_steps": 2,
    "save_steps": 3,
    "eval_steps": 100,
    "logging_steps": 1,
    "report_to": "none",
}
# Every run of this recipe ends with the same weights, wherever and however often it was stopped.
STEADY = {**TINY, **SHAPE, "optimizer": "muon", "decay_fraction": 0}


@pytest.fixture(scope="session")
def corpus(make_score, tmp_path_factory):
    """A prepared corpus of a few random pieces."""
    folder = tmp_path_factory.mktemp("corpus")
    tokenizer = MusicTxTokenizer()
    splits, seed = {}, 0
    for split, count in {"train": 6, "validation": 2, "test": 1}.items():
        rows = []
        for _ in range(count):
            seed += 1
            ids = [*tokenizer(make_score(seed))["input_ids"], tokenizer.eos_token_id]
            rows.append({"name": f"{seed}.mid", "input_ids": ids})
        features = {"name": datasets.Value("string"), "input_ids": datasets.List(datasets.Value("uint16"))}
        splits[split] = datasets.Dataset.from_list(rows, features=datasets.Features(features))
    datasets.DatasetDict(splits).save_to_disk(folder)
    tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "report.json").write_text(json.dumps({"fingerprint": "of the corpus"}))
    return folder


@pytest.fixture(scope="session")
def steady(corpus, tmp_path_factory):
    """The folder of an uninterrupted run of the steady recipe."""
    folder = tmp_path_factory.mktemp("steady")
    run(corpus, folder, STEADY)
    return folder


def flags(corpus, output_dir, *fields):
    named = {"corpus": corpus, "output_dir": output_dir}
    for more in fields:
        named |= more
    return [text for name, value in named.items() for text in (f"--{name}", str(value))]


def forget_the_last_run():
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def run(corpus, output_dir, *fields):
    """Train in this process and return the weights of the finished model."""
    forget_the_last_run()
    assert train.main(flags(corpus, output_dir, *fields)) == 0
    return load_file(output_dir / "model.safetensors")


def stopped(corpus, output_dir, *fields):
    """Train in this process until it ends before its time, and return the exit code."""
    forget_the_last_run()
    try:
        return train.main(flags(corpus, output_dir, *fields))
    except SystemExit as exit_:
        return exit_.code


def assert_same_weights(left, right, **tolerance):
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], **tolerance, msg=lambda text, n=name: f"{n}: {text}")


def assert_goes_on_to_the_same_end(corpus, folder, steady):
    resumed = run(corpus, folder, STEADY, {"resume_from_checkpoint": "latest"})
    assert_same_weights(resumed, load_file(steady / "model.safetensors"), rtol=0, atol=0)


def names(folder, pattern="*"):
    return sorted(path.name for path in folder.glob(pattern))


# What is said on the command line and in recipes


def test_the_command_line_wins_over_the_recipe_and_the_recipe_over_the_defaults(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("corpus: here\noutput_dir: there\nlearning_rate: 1e-4\nhidden_size: 96\naugment: false\n")
    parsed, config = train.parse([str(recipe), "--output_dir", "elsewhere", "--num_hidden_layers", "3"])
    assert (parsed.corpus, parsed.output_dir, parsed.learning_rate) == ("here", "elsewhere", 1e-4)
    assert parsed.augment is False
    assert config == {"hidden_size": 96, "num_hidden_layers": 3}
    assert parsed.seed == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("corpus: a\noutput_dir: b\nlerning_rate: 1\n", "--lerning_rate"),
        ("corpus: a\noutput_dir: b\nmax_steps: many\n", "many"),
        ("corpus: a\noutput_dir: b\nhidden_size: 250\nnum_attention_heads: 8\n", "try 248 or 256"),
        ("corpus: a\noutput_dir: b\nsave_steps: 0\n", "save_steps (0) must be at least 1"),
        ("corpus: a\noutput_dir: b\nshort_fraction: 2\n", "short_fraction (2.0) must be from 0 to 1"),
        ("corpus: a\noutput_dir: b\ndecay_fraction: .nan\n", "decay_fraction (nan) must be from 0 to 1"),
        ("corpus: a\noutput_dir: b\nsave_total_limit: -1\n", "save_total_limit (-1) must be at least 1"),
        ("corpus: a\noutput_dir: b\nlearning_rate: -1\n", "learning_rate (-1.0) must be a finite number, 0 or more"),
        ("corpus: a\noutput_dir: b\nmax_steps: -3\n", "max_steps (-3) must be at least 1"),
        ("corpus: &a b\noutput_dir: *a\n", "aliases are not allowed"),
        ("corpus: a\noutput_dir: b\nshort_fraction: 0.5\nsequence_length: 65\n", "(65) must be a multiple of 2"),
        ("output_dir: b\n", "--corpus"),
        ("just text", "field: value"),
        ("a: [", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_a_wrong_recipe_ends_in_one_clear_line(text, message, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    if text is not None:
        recipe.write_text(text)
    with pytest.raises(SystemExit) as exit_:
        train.parse([str(recipe)])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("fields", "environment", "message"),
    [
        ({"corpus": "nowhere"}, {}, "nowhere is not a prepared corpus"),
        ({"mixed_precision": "fp16"}, {}, "needs a GPU"),
        ({}, {"ACCELERATE_USE_FSDP": "true"}, "FSDP needs GPUs"),
        ({"report_to": "trackio"}, {}, "pip install trackio"),
        ({"push_to_hub": "user/name"}, {}, "model card"),
        ({"resume_from_checkpoint": "nowhere"}, {}, "nowhere is not a complete checkpoint"),
        ({"init_from": "./nowhere"}, {}, "./nowhere"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line_before_training(
    fields, environment, message, corpus, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(train, "find_spec", lambda name: None)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert stopped(corpus, tmp_path, STEADY, fields) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train.py: ")
    assert message in line


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_trains_in_small(recipe, corpus, steady, tmp_path):
    shape = {**SHAPE, "head_dim": 16}
    if "init_from" in recipe.read_text():
        shape = {"init_from": steady}
    small = {"max_steps": 2, "sequence_length": 64, "batch_size": 2, "mixed_precision": "no", "report_to": "none"}
    forget_the_last_run()
    train.main([str(recipe), *flags(corpus, tmp_path, shape, small)])
    assert json.loads((tmp_path / "run.json").read_text())["steps"] == 2


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_says_what_it_is_for_and_how_it_is_run(recipe):
    header = recipe.read_text().partition("\ncorpus:")[0]
    for words in ("Data:", "Launch:", "Expected:", "python -m corpus.prepare", f"train.py recipes/{recipe.name}"):
        assert words in header, words


# What is trained


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_parameter_has_one_optimizer_and_only_matrices_decay(optimizer):
    recipe = train.Recipe("", "", optimizer=optimizer)
    model = train.make_model(MusicTxTokenizer(), {}, recipe)
    optimizers = train.make_optimizers(model, recipe)
    assert len(optimizers) == (2 if optimizer == "muon" else 1)
    groups = [group for opt in optimizers for group in opt.param_groups]
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    assert all((p.ndim >= 2) == (group["weight_decay"] > 0) for group in groups for p in group["params"])


def test_training_ends_in_one_folder_that_the_auto_classes_load(corpus, tmp_path, capsys):
    fields = {"max_steps": 40, "optimizer": "muon", "augment": False, "report_to": "tensorboard"}
    run(corpus, tmp_path, TINY, SHAPE, fields)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert type(tokenizer) is MusicTxTokenizer
    assert model.config.vocab_size == len(tokenizer)
    played = model.generation_config
    assert (played.do_sample, played.top_p, played.top_k, played.eos_token_id) == (True, 0.98, 0, 2)
    assert list((tmp_path / "logs").rglob("events*"))

    losses = [
        float(line.split("loss ")[1].split()[0]) for line in capsys.readouterr().out.splitlines() if "loss" in line
    ]
    assert len(losses) == 40
    assert losses[-1] < losses[0] - 1

    record = json.loads((tmp_path / "run.json").read_text())
    assert record["tokens"] == 40 * 2 * 64
    assert record["corpus_fingerprint"] == "of the corpus"
    assert record["versions"]["torch"] == version("torch")
    assert record["shape"]["head_dim"] == 16
    assert 0 < record["data_wait_share"] < 1
    # What is reported is what the saved weights give.
    windows = train.EvaluationWindows(train.load_corpus(corpus)["validation"], 64)
    nats = train.negative_log_likelihood(model, windows).nats_per_token
    assert record["validation_nats_per_token"]["40"] == pytest.approx(nats, abs=1e-3)


def test_evaluations_leave_samples_and_the_best_model_and_change_nothing(corpus, steady, tmp_path):
    # Gradient checkpointing must not change anything either, dropout included.
    weights = run(corpus, tmp_path, STEADY, {"eval_steps": 2, "gradient_checkpointing": True})
    assert_same_weights(weights, load_file(steady / "model.safetensors"), rtol=0, atol=0)
    assert names(tmp_path / "samples") == [f"step-{step}.{suffix}" for step in (2, 4, 6) for suffix in ("mid", "png")]
    nats = json.loads((tmp_path / "run.json").read_text())["validation_nats_per_token"]
    assert list(nats) == ["2", "4", "6"]
    best = min(nats, key=nats.get)
    assert names(tmp_path, "best*") == [f"best-{best}"]
    windows = train.EvaluationWindows(train.load_corpus(corpus)["validation"], 64)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / f"best-{best}")
    assert train.negative_log_likelihood(model, windows).nats_per_token == pytest.approx(nats[best], abs=1e-3)


def test_accumulated_batches_equal_one_large_batch(corpus, tmp_path):
    fields = {"attention_dropout": 0, "max_steps": 3}
    large = run(corpus, tmp_path / "large", TINY, SHAPE, fields, {"batch_size": 4})
    small = run(corpus, tmp_path / "small", TINY, SHAPE, fields, {"batch_size": 1, "gradient_accumulation_steps": 4})
    assert_same_weights(small, large, rtol=1e-3, atol=2e-5)


def test_two_processes_equal_one_with_twice_the_batch(corpus, tmp_path):
    fields = {"attention_dropout": 0, "max_steps": 3}
    one = run(corpus, tmp_path / "one", TINY, SHAPE, fields, {"batch_size": 4})
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_cpu_threads_per_process", "1", "--main_process_port", "0", train.__file__]
    command += flags(corpus, tmp_path / "two", TINY, SHAPE, fields, {"batch_size": 2})
    # What counts is what they write: gloo has been seen to linger when the processes end.
    written = tmp_path / "two" / "model.safetensors"
    with (tmp_path / "log").open("w") as log:
        launched = subprocess.Popen(command, stdout=log, stderr=log)
        while launched.poll() is None and not written.exists():
            time.sleep(0.1)
        try:
            launched.wait(timeout=60)
        except subprocess.TimeoutExpired:
            launched.terminate()  # the launcher ends the processes, which a kill would leave behind
            launched.wait()
    assert written.exists(), (tmp_path / "log").read_text()[-3000:]
    assert_same_weights(load_file(tmp_path / "two" / "model.safetensors"), one, rtol=1e-3, atol=2e-5)
    reports = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("one", "two")]
    assert reports[0]["tokens"] == reports[1]["tokens"]
    nats = [report["validation_nats_per_token"]["3"] for report in reports]
    assert nats[0] == pytest.approx(nats[1], abs=2e-4)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_each_window_is_scored_by_one_process_and_all_take_equally_many(count):
    windows = [{"input_ids": torch.tensor([i]), "labels": torch.tensor([i])} for i in range(5)]
    shares = [train.EvalShard(windows, index, count) for index in range(count)]
    assert len({len(share) for share in shares}) == 1
    labels = [share[place]["labels"].item() for share in shares for place in range(len(share))]
    assert sorted(label for label in labels if label != train.IGNORED) == [0, 1, 2, 3, 4]


def test_short_crops_come_first_twice_as_many_and_a_run_goes_on_in_either_part(corpus, tmp_path, monkeypatch):
    shapes = []
    train_step = train.train_step

    def watched(accelerator, model, optimizers, batches, *arguments):
        first = next(batches)
        shapes.append(tuple(first["input_ids"].shape))
        return train_step(accelerator, model, optimizers, iter([first]), *arguments)

    monkeypatch.setattr(train, "train_step", watched)
    short = {"short_fraction": 0.5, "save_steps": 1, "save_total_limit": 6}
    weights = run(corpus, tmp_path, STEADY, short)
    assert shapes == [(4, 32)] * 3 + [(2, 64)] * 3
    assert json.loads((tmp_path / "run.json").read_text())["tokens"] == 6 * 128
    for step in (4, 3, 2):
        resumed = run(corpus, tmp_path, STEADY, short, {"resume_from_checkpoint": tmp_path / f"checkpoint-{step}"})
        assert_same_weights(resumed, weights, rtol=0, atol=0)


# What stops a training, and what goes on


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
        while process.poll() is None and not names(tmp_path / "run", ".checkpoint-4.unfinished-*"):
            time.sleep(0.0005)
        process.kill()
        process.wait()
    assert not (tmp_path / "run" / "model.safetensors").exists(), (tmp_path / "log").read_text()
    assert names(tmp_path / "run", "checkpoint*")
    assert_goes_on_to_the_same_end(corpus, tmp_path / "run", steady)
    assert not names(tmp_path / "run", ".*")


@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
def test_a_signal_saves_a_checkpoint_and_is_named(corpus, steady, tmp_path, capsys, monkeypatch, number, name):
    train_step, before = train.train_step, signal.getsignal(number)

    def preempted(*arguments):
        if arguments[5] == 3:
            os.kill(os.getpid(), number)
        return train_step(*arguments)

    monkeypatch.setattr(train, "train_step", preempted)
    assert stopped(corpus, tmp_path, STEADY) == 128 + number
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{name}: stopped after step 4")
    assert signal.getsignal(number) == before
    monkeypatch.undo()
    assert_goes_on_to_the_same_end(corpus, tmp_path, steady)


def test_sigterm_during_an_evaluation_is_not_kept_waiting_and_the_evaluation_not_lost(
    corpus, steady, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        train, "negative_log_likelihood", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM) or (1.0, 1)
    )
    assert stopped(corpus, tmp_path, STEADY, {"eval_steps": 2}) == 128 + signal.SIGTERM
    assert names(tmp_path, "checkpoint*") == ["checkpoint-2"]
    monkeypatch.undo()
    resumed = run(corpus, tmp_path, STEADY, {"eval_steps": 2, "resume_from_checkpoint": "latest"})
    assert_same_weights(resumed, load_file(steady / "model.safetensors"), rtol=0, atol=0)
    assert list(json.loads((tmp_path / "run.json").read_text())["validation_nats_per_token"]) == ["2", "4", "6"]


def test_a_full_disk_ends_in_one_line_and_leaves_the_last_checkpoint(corpus, steady, tmp_path, capsys, monkeypatch):
    train_step, limits = train.train_step, resource.getrlimit(resource.RLIMIT_FSIZE)

    def filled(*arguments):
        if arguments[5] == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        return train_step(*arguments)

    monkeypatch.setattr(train, "train_step", filled)
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


# Numbers that go wrong


def poison(monkeypatch, steps, spoil):
    """Let something happen to the model before these steps."""
    train_step = train.train_step

    def poisoned(accelerator, model, *arguments):
        handle = spoil(model) if arguments[3] in steps else SimpleNamespace(remove=lambda: None)
        result = train_step(accelerator, model, *arguments)
        handle.remove()
        return result

    monkeypatch.setattr(train, "train_step", poisoned)


def spoil_loss(model):
    calls = []

    def hook(module, arguments, output):
        calls.append(output)
        if len(calls) == 2:  # the second of the accumulated batches
            output.loss = output.loss * float("nan")

    return model.register_forward_hook(hook)


def spoil_gradient(model):
    return model.model.norm.weight.register_hook(lambda gradient: gradient * float("inf"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(spoil_loss, "loss nan, gradient norm nan, crops 14 to 15"), (spoil_gradient, "crops 12 to 13, 14 to 15")],
)
def test_a_step_without_a_finite_loss_or_gradient_is_skipped_and_named(
    spoil, message, corpus, tmp_path, capsys, monkeypatch
):
    poison(monkeypatch, {3}, spoil)
    weights = run(corpus, tmp_path, STEADY, {"gradient_accumulation_steps": 2})
    assert all(weight.isfinite().all() for weight in weights.values())
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "skipped" in line)
    assert line.startswith("step 4/6 | skipped (1 of 20)")
    assert message in line
    assert message in json.loads((tmp_path / "run.json").read_text())["skipped_steps"]["4"]


def test_a_skipped_step_does_not_replace_a_checkpoint(corpus, tmp_path, monkeypatch):
    poison(monkeypatch, {3, 4, 5}, spoil_gradient)
    run(corpus, tmp_path, STEADY, {"save_steps": 1, "save_total_limit": 2})
    assert names(tmp_path, "checkpoint*") == ["checkpoint-2", "checkpoint-3"]


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


def test_a_signal_after_a_skipped_step_saves_nothing(corpus, tmp_path, monkeypatch):
    poison(monkeypatch, {3}, spoil_gradient)
    train_step = train.train_step

    def preempted(*arguments):
        if arguments[5] == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(*arguments)

    monkeypatch.setattr(train, "train_step", preempted)
    assert stopped(corpus, tmp_path, STEADY, {"save_steps": 1, "save_total_limit": 1}) == 128 + signal.SIGTERM
    assert names(tmp_path, "checkpoint*") == ["checkpoint-3"]


def test_an_evaluation_that_is_not_finite_is_never_the_best_and_hides_no_later_one(corpus, tmp_path, monkeypatch):
    nats = iter([(math.nan, 1), (2.0, 1), (3.0, 1)])
    monkeypatch.setattr(train, "negative_log_likelihood", lambda *_, **__: next(nats))
    run(corpus, tmp_path, STEADY, {"eval_steps": 2})
    history = json.loads((tmp_path / "run.json").read_text())["validation_nats_per_token"]
    assert list(history.values()) == [None, 2.0, 3.0]
    assert names(tmp_path, "best*") == ["best-4"]


def test_a_checkpoint_of_before_a_field_existed_is_continued_as_if_it_had_its_default(tmp_path):
    config = {name: getattr(MusicTxConfig(), name) for name in CONFIG_FIELDS}
    now = {"shape": config, "recipe": vars(train.Recipe("", "")), "corpus_fingerprint": "same"}
    then = {
        "shape": {name: value for name, value in config.items() if name != "sliding_window"},
        "recipe": {name: value for name, value in now["recipe"].items() if name != "lora_rank"},
        "corpus_fingerprint": "same",
    }
    check_same_run(tmp_path, then, now)
    with pytest.raises(ValueError, match="sliding_window None, and this one has 64"):
        check_same_run(tmp_path, then, now | {"shape": config | {"sliding_window": 64}})


def test_too_many_skipped_steps_end_the_run(corpus, tmp_path, capsys, monkeypatch):
    poison(monkeypatch, {1, 2, 4}, spoil_gradient)
    assert stopped(corpus, tmp_path, STEADY, {"max_skipped_steps": 2}) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "3 steps had no finite loss and gradient, the last at step 5" in line
    assert "crops 8 to 9 of 64 tokens" in line


def test_under_fp16_a_step_is_the_same_or_skipped_and_the_scale_falls_once():
    """The scaler works on CPU, too, where training in fp16 is not offered."""
    forget_the_last_run()
    recipe, config = train.parse(
        ["--corpus", "a", "--output_dir", "b", *flags("", "", STEADY, {"attention_dropout": 0})]
    )
    batch = {"input_ids": torch.arange(3, 67).view(1, 64)}
    batch["labels"] = batch["input_ids"]
    ends = []
    for scale in (None, 2.0**10, 2.0**127):
        accelerator = train.make_accelerator(recipe)
        model = train.make_model(MusicTxTokenizer(), config, recipe)
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        model, *optimizers = accelerator.prepare(model, *train.make_optimizers(model, recipe))
        if scale:
            accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
            accelerator.native_amp, accelerator.state._mixed_precision = True, "fp16"
        inner = [optimizer.optimizer for optimizer in optimizers]
        done = train.train_step(accelerator, model, inner, iter([batch]), recipe, 1, train.Preemption())
        ends.append(model.state_dict())
        forget_the_last_run()
    assert_same_weights(ends[1], ends[0], rtol=0, atol=0)
    assert_same_weights(ends[2], before, rtol=0, atol=0)
    assert done.skip_reason
    assert not done.is_counted
    assert accelerator.scaler.get_scale() == 2.0**126


# Beginning with a model, and sending one out


def test_fine_tuning_begins_with_the_weights_it_is_given(corpus, steady, tmp_path):
    weights = run(corpus, tmp_path, TINY, {"init_from": steady, "learning_rate": 0, "max_steps": 1})
    assert_same_weights(weights, load_file(steady / "model.safetensors"), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 64}, "hidden_size (64) is not that of"),
        ({"corpus": "other"}, "has another vocabulary (391 tokens) than"),
        ({"init_from": "pickled"}, "safetensors"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(fields, message, corpus, steady, tmp_path, capsys):
    other, pickled = tmp_path / "other", tmp_path / "pickled"
    shutil.copytree(corpus, other)
    tokenizer = MusicTxTokenizer()
    tokenizer.add_tokens(["Encore"])
    tokenizer.save_pretrained(other / "tokenizer")
    shutil.copytree(steady, pickled)
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    fields = {name: tmp_path / value if isinstance(value, str) else value for name, value in fields.items()}
    assert stopped(corpus, tmp_path / "run", TINY, {"init_from": steady}, fields) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_adapters_change_the_layers_matrices_alone_and_are_merged_when_saved(corpus, steady, tmp_path):
    pytest.importorskip("peft")
    fields = {"init_from": steady, "lora_rank": 2, "max_steps": 4}
    tuned = run(corpus, tmp_path / "whole", TINY, fields)
    before = load_file(steady / "model.safetensors")
    assert {name for name in before if not tuned[name].equal(before[name])} == {
        name for name in before if name.endswith("_proj.weight")
    }
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    windows = train.EvaluationWindows(train.load_corpus(corpus)["validation"], 64)
    nats = json.loads((tmp_path / "whole" / "run.json").read_text())["validation_nats_per_token"]["4"]
    assert train.negative_log_likelihood(model, windows).nats_per_token == pytest.approx(nats, abs=1e-3)
    # The adapters' own state is in the checkpoint.
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "halves" / "checkpoint-3")
    resumed = run(corpus, tmp_path / "halves", TINY, fields, {"resume_from_checkpoint": "latest"})
    assert_same_weights(resumed, tuned, rtol=0, atol=0)


def test_each_best_model_and_the_finished_one_are_sent_to_the_hub_with_their_card(corpus, tmp_path, monkeypatch):
    sent = []

    def send(command, **options):
        if "hub.publish" not in command:
            return SimpleNamespace(stdout="")
        check_folder(Path(command[3]))  # it would be accepted
        sent.append((Path(command[3]).name, *command[4:]))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", send)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "README.md").write_text("---\nlicense: mit\n---\n")
    fields = {"max_steps": 4, "eval_steps": 2, "push_to_hub": "user/name", "learning_rate": 1e-3}
    run(corpus, tmp_path / "run", TINY, SHAPE, fields)
    best = [(f"best-{step}", "user/name", "--revision", "best") for step in (2, 4)]
    assert sent == [*best, ("run", "user/name")]
