"""Trainings small enough for tests: their recipes, and what starts, stops and compares them."""

from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file

import train

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
    """Start a training that ends early in this process, and return the exit code."""
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


def before_step(monkeypatch, number, action):
    """Do something before the step of this number, counted from 0."""
    train_step = train.train_step

    def watched(*arguments):
        if arguments[5] == number:
            action()
        return train_step(*arguments)

    monkeypatch.setattr(train, "train_step", watched)


def poison(monkeypatch, steps, spoil):
    """Register a hook on the model for these steps only."""
    train_step = train.train_step

    def poisoned(accelerator, model, *arguments):
        handle = spoil(model) if arguments[3] in steps else SimpleNamespace(remove=lambda: None)
        result = train_step(accelerator, model, *arguments)
        handle.remove()
        return result

    monkeypatch.setattr(train, "train_step", poisoned)


def spoil_gradient(model):
    return model.model.norm.weight.register_hook(lambda gradient: gradient * float("inf"))
