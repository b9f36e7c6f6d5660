"""The likelihood of a split is one number: every token counted once, whatever the batch."""

import math

import pytest
import torch

from evaluation.likelihood import negative_log_likelihood
from modeling_music_tx import MusicTxConfig, MusicTxForCausalLM


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return MusicTxForCausalLM(MusicTxConfig(vocab_size=30, hidden_size=32, num_hidden_layers=2, initializer_range=0.3))


@pytest.fixture(scope="module")
def windows():
    """Five windows of 12, the last one padded beyond its seventh token."""
    ids = torch.randint(3, 30, (5, 12), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[4, 7:] = -100
    return [{"input_ids": row, "labels": label} for row, label in zip(ids, labels, strict=True)]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_it_is_the_sum_over_every_labelled_token_but_the_first_of_each_window(model, windows, batch_size):
    nats, tokens = 0.0, 0
    with torch.no_grad():
        for window in windows:
            probabilities = model(window["input_ids"][None]).logits[0].softmax(-1)
            for place in range(1, 12):
                if window["labels"][place] >= 0:
                    nats -= math.log(probabilities[place - 1, window["labels"][place]])
                    tokens += 1
    result = negative_log_likelihood(model, windows, batch_size)
    assert result.tokens == tokens == 4 * 11 + 6
    assert result.nats == pytest.approx(nats, rel=1e-5)
    assert result.nats_per_token == pytest.approx(nats / tokens, rel=1e-5)


def test_the_model_is_left_in_the_mode_it_came_in(model, windows):
    model.train()
    negative_log_likelihood(model, windows)
    assert model.training
    model.eval()
    negative_log_likelihood(model, windows)
    assert not model.training
