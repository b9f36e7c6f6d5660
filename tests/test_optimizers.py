"""Each parameter is in one optimizer, and the learning rate rises, stays and falls."""

import pytest
from tiny_training import SHAPE

from modeling_music_tx import MusicTxConfig, MusicTxForCausalLM
from training.optimizers import make_optimizers, schedule
from training.recipe import Recipe


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_parameter_has_one_optimizer_and_only_matrices_decay(optimizer):
    recipe = Recipe("", "", optimizer=optimizer)
    model = MusicTxForCausalLM(MusicTxConfig(**SHAPE))
    optimizers = make_optimizers(model, recipe)
    assert len(optimizers) == (2 if optimizer == "muon" else 1)
    groups = [group for opt in optimizers for group in opt.param_groups]
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    assert all((p.ndim >= 2) == (group["weight_decay"] > 0) for group in groups for p in group["params"])


def test_the_learning_rate_rises_stays_and_falls_to_zero():
    recipe = Recipe("", "", warmup_steps=4, max_steps=20, decay_fraction=0.5)
    rates = [schedule(step, recipe) for step in range(21)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:11] == [1.0] * 7
    assert rates[11:] == pytest.approx([0.1 * left for left in range(9, -1, -1)])


def test_a_longer_run_has_the_same_learning_rate_until_the_shorter_one_decays():
    short, long = (Recipe("", "", max_steps=steps, warmup_steps=10, decay_fraction=0.4) for steps in (100, 200))
    assert all(schedule(step, short) == schedule(step, long) for step in range(61))
    assert schedule(61, short) < schedule(61, long)


@pytest.mark.parametrize(
    ("optimizer", "given", "expected"), [("muon", 4e-2, 4e-2), ("muon", None, 1e-2), ("adamw", 4e-2, 1e-2)]
)
def test_with_muon_the_embeddings_may_have_a_peak_rate_of_their_own(optimizer, given, expected):
    recipe = Recipe("", "", optimizer=optimizer, learning_rate=1e-2, embedding_learning_rate=given)
    model = MusicTxForCausalLM(MusicTxConfig(**SHAPE, value_residual=True))
    peaks = {
        id(p): group["peak"]
        for opt in make_optimizers(model, recipe)
        for group in opt.param_groups
        for p in group["params"]
    }
    for name, p in model.named_parameters():
        assert peaks[id(p)] == (1e-2 if name.endswith("_proj.weight") else expected), name
