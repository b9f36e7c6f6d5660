"""A training does what its recipe says, ends in a folder that loads, and resumes as if it had never stopped."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import train
from tokenization import MusicTxTokenizer

TINY = {
    "sequence_length": 64,
    "batch_size": 2,
    "max_steps": 6,
    "learning_rate": 1e-2,
    "warmup_steps": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_relative_distance": 64,
    "attention_dropout": 0.1,
    "save_steps": 3,
    "eval_steps": 100,
    "logging_steps": 1,
}


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


def flags(corpus, output_dir, **fields):
    fields = {"corpus": corpus, "output_dir": output_dir, **TINY, **fields}
    return [text for name, value in fields.items() for text in (f"--{name}", str(value))]


def run(corpus, output_dir, **fields):
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    train.main(flags(corpus, output_dir, **fields))
    return load_file(output_dir / "model.safetensors")


def assert_same_weights(left, right, **tolerance):
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], **tolerance, msg=lambda text, n=name: f"{n}: {text}")


def test_the_command_line_wins_over_the_recipe_and_the_recipe_over_the_defaults(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("corpus: here\noutput_dir: there\nlearning_rate: 1e-4\nhidden_size: 96\naugment: false\n")
    parsed, shape = train.parse([str(recipe), "--output_dir", "elsewhere", "--num_hidden_layers", "3"])
    assert (parsed.corpus, parsed.output_dir, parsed.learning_rate) == ("here", "elsewhere", 1e-4)
    assert parsed.augment is False
    assert (shape.hidden_size, shape.num_hidden_layers) == (96, 3)
    assert parsed.seed == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("corpus: a\noutput_dir: b\nlerning_rate: 1\n", "--lerning_rate"),
        ("corpus: a\noutput_dir: b\nmax_steps: many\n", "many"),
        ("corpus: a\noutput_dir: b\nhidden_size: 250\nnum_attention_heads: 8\n", "try 248 or 256"),
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


def test_shipped_recipes_are_read():
    recipes = sorted(Path(train.__file__).with_name("recipes").glob("*.yaml"))
    assert recipes
    for recipe in recipes:
        train.parse([str(recipe)])


def test_the_learning_rate_rises_stays_and_falls_to_zero():
    recipe = train.Recipe("", "", max_steps=100, learning_rate=2.0, warmup_steps=10, decay_fraction=0.4)
    rates = [train.learning_rate(step, recipe) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9:60] == [2.0] * 51
    assert rates[80] == pytest.approx(1.0)
    assert 0 < rates[99] < 0.1


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_parameter_has_one_optimizer_and_only_matrices_decay(optimizer):
    _, shape = train.parse(["--corpus", "a", "--output_dir", "b"])
    model = train.make_model(MusicTxTokenizer(), shape, seed=0)
    optimizers = train.make_optimizers(model, train.Recipe("", "", optimizer=optimizer))
    assert len(optimizers) == (2 if optimizer == "muon" else 1)
    groups = [group for opt in optimizers for group in opt.param_groups]
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    assert all((p.ndim >= 2) == (group["weight_decay"] > 0) for group in groups for p in group["params"])


def test_training_ends_in_one_folder_that_the_auto_classes_load(corpus, tmp_path, capsys):
    run(corpus, tmp_path, max_steps=40, optimizer="muon", augment=False)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert type(tokenizer) is MusicTxTokenizer
    assert model.config.vocab_size == len(tokenizer)

    losses = [
        float(line.split("loss ")[1].split()[0]) for line in capsys.readouterr().out.splitlines() if "loss" in line
    ]
    assert len(losses) == 40
    assert losses[-1] < losses[0] - 1

    record = json.loads((tmp_path / "run.json").read_text())
    assert record["tokens"] == 40 * 2 * 64
    assert record["corpus_fingerprint"] == "of the corpus"
    # What is reported is what the saved weights give.
    windows = train.EvaluationWindows(train.load_corpus(corpus)["validation"], 64)
    nats = train.negative_log_likelihood(model, windows).nats_per_token
    assert record["validation_nats_per_token"]["40"] == pytest.approx(nats, abs=1e-3)


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(corpus, tmp_path):
    whole = run(corpus, tmp_path / "whole", optimizer="muon", decay_fraction=0)
    run(corpus, tmp_path / "halves", optimizer="muon", decay_fraction=0, max_steps=3)
    resumed = run(corpus, tmp_path / "halves", optimizer="muon", decay_fraction=0, resume_from_checkpoint="latest")
    assert_same_weights(resumed, whole, rtol=0, atol=0)


def test_old_checkpoints_are_removed_and_none_is_left_half_written(corpus, tmp_path):
    run(corpus, tmp_path, save_steps=1, save_total_limit=2, max_steps=5)
    assert sorted(path.name for path in tmp_path.glob("*checkpoint*")) == ["checkpoint-4", "checkpoint-5"]
    assert not list(tmp_path.glob(".*"))


def test_accumulated_batches_equal_one_large_batch(corpus, tmp_path):
    fields = {"attention_dropout": 0, "max_steps": 3}
    large = run(corpus, tmp_path / "large", batch_size=4, **fields)
    small = run(corpus, tmp_path / "small", batch_size=1, gradient_accumulation_steps=4, **fields)
    assert_same_weights(small, large, rtol=1e-3, atol=2e-5)


def test_two_processes_equal_one_with_twice_the_batch(corpus, tmp_path):
    fields = {"attention_dropout": 0, "max_steps": 3}
    one = run(corpus, tmp_path / "one", batch_size=4, **fields)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_cpu_threads_per_process", "1", "--main_process_port", "0"]
    command += [train.__file__, *flags(corpus, tmp_path / "two", batch_size=2, **fields)]
    # What counts is what they write: gloo has been seen to linger when the processes end.
    with (tmp_path / "log").open("w") as log:
        launched = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            launched.wait(timeout=120)
        except subprocess.TimeoutExpired:
            os.killpg(launched.pid, signal.SIGKILL)
    assert (tmp_path / "two" / "run.json").exists(), (tmp_path / "log").read_text()[-3000:]
    assert_same_weights(load_file(tmp_path / "two" / "model.safetensors"), one, rtol=1e-3, atol=2e-5)
    reports = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("one", "two")]
    assert reports[0]["tokens"] == reports[1]["tokens"]
    nats = [report["validation_nats_per_token"]["3"] for report in reports]
    assert nats[0] == pytest.approx(nats[1], abs=2e-4)
