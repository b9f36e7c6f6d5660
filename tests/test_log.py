"""The log counts what is skipped, and names the best evaluation."""

import json
import math

from tiny_training import STEADY, names, poison, run, spoil_gradient, stopped

import train


def test_an_evaluation_that_is_not_finite_is_never_the_best_and_hides_no_later_one(corpus, tmp_path, monkeypatch):
    nats = iter([(math.nan, 1), (2.0, 1), (3.0, 1)])
    monkeypatch.setattr(train, "negative_log_likelihood", lambda *_, **__: next(nats))
    run(corpus, tmp_path, STEADY, {"eval_steps": 2})
    history = json.loads((tmp_path / "run.json").read_text())["validation_nats_per_token"]
    assert list(history.values()) == [None, 2.0, 3.0]
    assert names(tmp_path, "best*") == ["best-4"]


def test_a_model_without_a_finite_loss_is_not_written_as_finished(corpus, tmp_path, monkeypatch, capsys):
    nats = iter([(2.0, 1), (3.0, 1), (math.nan, 1)])
    monkeypatch.setattr(train, "negative_log_likelihood", lambda *_, **__: next(nats))
    assert stopped(corpus, tmp_path, STEADY, {"eval_steps": 2}) == 2
    assert "the trained model has no finite loss on validation" in capsys.readouterr().err
    assert not (tmp_path / "model.safetensors").exists()


def test_too_many_skipped_steps_end_the_run(corpus, tmp_path, capsys, monkeypatch):
    poison(monkeypatch, {1, 2, 4}, spoil_gradient)
    assert stopped(corpus, tmp_path, STEADY, {"max_skipped_steps": 2}) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "3 steps had no finite loss and gradient, the last at step 5" in line
    assert "crops 8 to 9 of 64 tokens" in line
