"""A training follows its recipe, ends in a folder that loads, and survives signals and non-finite steps."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from miditok import REMI
from safetensors.torch import load_file
from tiny_training import (
    RECIPES,
    SHAPE,
    STEADY,
    TINY,
    assert_goes_on_to_the_same_end,
    assert_same_weights,
    before_step,
    flags,
    forget_the_last_run,
    names,
    poison,
    run,
    spoil_gradient,
    stopped,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

import train
from hub.publish import check_folder
from tokenization import MusicTxTokenizer, PerformanceWithControls

# Before the training


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
        ({"attn_implementation": "flash_attention_2"}, {}, "takes no bias that depends on the query"),
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


def with_controls(corpus, folder):
    """Copy a corpus and give it a tokenizer with tokens for controls and infilling: the ids of music are the same."""
    shutil.copytree(corpus, folder)
    MusicTxTokenizer.from_miditok(PerformanceWithControls()).save_pretrained(folder / "tokenizer")
    return folder


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_trains_in_small(recipe, corpus, steady, tmp_path):
    shape = {**SHAPE, "head_dim": 16}
    if "init_from" in recipe.read_text():
        shape = {"init_from": steady}
    if "control_fraction" in recipe.read_text():
        corpus = with_controls(corpus, tmp_path / "corpus")
    small = {"max_steps": 2, "sequence_length": 64, "batch_size": 2, "mixed_precision": "no", "report_to": "none"}
    if "triton_relative" in recipe.read_text():  # Triton is not installed everywhere
        small |= {"attn_implementation": "blocked_relative", "dataloader_num_workers": 0}
    forget_the_last_run()
    train.main([str(recipe), *flags(corpus, tmp_path, shape, small)])
    assert json.loads((tmp_path / "run.json").read_text())["steps"] == 2


# The training


def test_training_ends_in_one_folder_that_the_auto_classes_load(corpus, tmp_path, capsys):
    fields = {"max_steps": 40, "optimizer": "muon", "augment": False, "report_to": "tensorboard"}
    run(corpus, tmp_path, TINY, SHAPE, fields)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert type(tokenizer) is MusicTxTokenizer
    assert model.config.vocab_size == len(tokenizer)
    played = model.generation_config
    assert (played.do_sample, played.min_p, played.top_k, played.eos_token_id) == (True, 0.02, 0, 2)
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


# Signals


@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
def test_a_signal_saves_a_checkpoint_and_is_named(corpus, steady, tmp_path, capsys, monkeypatch, number, name):
    before = signal.getsignal(number)
    before_step(monkeypatch, 3, lambda: os.kill(os.getpid(), number))
    assert stopped(corpus, tmp_path, STEADY) == 128 + number
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{name}: stopped after step 4")
    assert signal.getsignal(number) == before
    monkeypatch.undo()
    assert_goes_on_to_the_same_end(corpus, tmp_path, steady)


def start_until(step, command, log, **options):
    """Start a training in a process of its own, and return it when it has logged this step."""
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, **options)
    deadline = time.monotonic() + 600
    while f"step {step}/" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return process


LONG = {"max_steps": 100_000, "save_steps": 100_000, "warmup_steps": 100_000}


def test_sigterm_to_the_process_group_is_survived_by_the_workers_that_the_checkpoint_needs(corpus, tmp_path):
    fields = {"dataloader_num_workers": 2}
    command = [sys.executable, train.__file__, *flags(corpus, tmp_path / "run", STEADY, LONG, fields)]
    process = start_until(2, command, tmp_path / "log", start_new_session=True)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=120) == 128 + signal.SIGTERM, (tmp_path / "log").read_text()
    (checkpoint,) = names(tmp_path / "run", "checkpoint*")
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert last.startswith(f"SIGTERM: stopped after step {checkpoint.removeprefix('checkpoint-')};")
    assert not names(tmp_path / "run", ".*")


def test_a_process_whose_launcher_is_killed_saves_a_checkpoint_and_ends(corpus, tmp_path):
    launcher = [sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:])"]
    command = [sys.executable, train.__file__, *flags(corpus, tmp_path / "run", STEADY, LONG)]
    rank = {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    process = start_until(2, [*launcher, *command], tmp_path / "log", env=os.environ | rank)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 120
    while not (tmp_path / "log").read_text().splitlines()[-1].startswith("SIGTERM: stopped after step"):
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.1)
    assert len(names(tmp_path / "run", "checkpoint*")) == 1


def test_ctrl_c_before_the_first_step_and_a_second_one_end_in_one_line(corpus, tmp_path, capsys, monkeypatch, request):
    def interrupt(*_):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)

    # Shells start background processes with Ctrl-C ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with monkeypatch.context() as patch:
        patch.setattr(train, "load_tokenizer", interrupt)
        assert stopped(corpus, tmp_path, STEADY) == 128 + signal.SIGINT
    before_step(monkeypatch, 2, lambda: (os.kill(os.getpid(), signal.SIGINT), interrupt()))
    assert stopped(corpus, tmp_path, STEADY) == 128 + signal.SIGINT
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"train.py: interrupted; what {tmp_path} holds is complete"] * 2
    assert not names(tmp_path, ".*")


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is locked there")
def test_two_trainings_do_not_write_to_one_folder(corpus, steady, tmp_path, capsys):
    hold = "import sys, time; from pathlib import Path; from corpus.atomic_files import exclusive\n"
    hold += "with exclusive(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    shutil.copytree(steady / "checkpoint-3", tmp_path / "checkpoint-3")
    command = [sys.executable, "-c", hold, tmp_path / ".lock"]
    root = Path(train.__file__).parent
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as other:
        assert other.stdout.readline() == "held\n"
        assert stopped(corpus, tmp_path, STEADY, {"overwrite": True}) == 2
        other.kill()
    (line,) = capsys.readouterr().err.splitlines()
    assert f"process {other.pid} writes there and holds {tmp_path}/.lock" in line
    assert names(tmp_path, "checkpoint*") == ["checkpoint-3"]
    assert_goes_on_to_the_same_end(corpus, tmp_path, steady)
    assert not names(tmp_path, ".*")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corpus_that_becomes_shorter_ends_in_one_line(workers, corpus, tmp_path, capsys, monkeypatch):
    shutil.copytree(corpus, tmp_path / "corpus")
    (path,) = (tmp_path / "corpus").glob("train/data-*.arrow")
    before_step(monkeypatch, 2, lambda: os.truncate(path, 100))
    fields = {"dataloader_num_workers": workers, "max_steps": 50}
    assert stopped(tmp_path / "corpus", tmp_path / "run", STEADY, fields) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"train.py: {path} has become shorter while it is read")


def test_an_empty_validation_split_is_named_before_anything_is_written(corpus, tmp_path, capsys, monkeypatch):
    splits = train.load_corpus(corpus)
    empty = splits["validation"].select([])
    monkeypatch.setattr(train, "load_corpus", lambda _: splits | {"validation": empty})
    assert stopped(corpus, tmp_path / "run", STEADY) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "split is empty; prepare the corpus again" in line
    assert not (tmp_path / "run").exists()


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


# Steps without finite numbers


def spoil_loss(model):
    calls = []

    def hook(module, arguments, output):
        calls.append(output)
        if len(calls) == 2:  # the second of the accumulated batches
            output.loss = output.loss * float("nan")

    return model.register_forward_hook(hook)


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


def test_a_signal_after_a_skipped_step_saves_nothing(corpus, tmp_path, monkeypatch):
    poison(monkeypatch, {3}, spoil_gradient)
    before_step(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert stopped(corpus, tmp_path, STEADY, {"save_steps": 1, "save_total_limit": 1}) == 128 + signal.SIGTERM
    # That of step 3 has not given a finite loss, so that the one before stays.
    assert names(tmp_path, "checkpoint*") == ["checkpoint-2", "checkpoint-3"]


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


# Fine-tuning and publishing


def test_fine_tuning_begins_with_the_weights_it_is_given(corpus, steady, tmp_path):
    weights = run(corpus, tmp_path, TINY, {"init_from": steady, "learning_rate": 0, "max_steps": 1})
    assert_same_weights(weights, load_file(steady / "model.safetensors"), rtol=0, atol=0)
    # What it is tuned from is scored first, to compare with.
    tuned, before = (json.loads((folder / "run.json").read_text()) for folder in (tmp_path, steady))
    assert tuned["validation_nats_per_token"] == dict.fromkeys(("0", "1"), before["validation_nats_per_token"]["6"])


def test_a_model_learns_tokens_that_stand_behind_its_own(corpus, steady, tmp_path):
    fields = {"init_from": steady, "learning_rate": 0, "max_steps": 1, "control_fraction": 1.0, "infill_fraction": 0.5}
    weights = run(with_controls(corpus, tmp_path / "corpus"), tmp_path / "run", TINY, fields)
    table, before = weights["model.embed_tokens.weight"], load_file(steady / "model.safetensors")
    assert len(table) == 451
    assert table[:391].equal(before["model.embed_tokens.weight"])
    assert table[391:].std() > 0


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
    MusicTxTokenizer.from_miditok(REMI()).save_pretrained(other / "tokenizer")
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
