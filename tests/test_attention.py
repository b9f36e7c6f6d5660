"""Attention by distance: shares of a whole, against plain loops and where every token sees all alike."""

import datasets
import numpy as np
import pytest
import torch

from corpus.dataset import EvaluationWindows
from evaluation.attention import attention_by_distance, octaves
from modeling_music_tx import MusicTxConfig, MusicTxForCausalLM


@pytest.fixture
def model():
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "max_relative_distance": 8}
    return MusicTxForCausalLM(MusicTxConfig(vocab_size=30, initializer_range=0.8, **shape))


@pytest.fixture(scope="module")
def windows():
    """A whole window of 16 tokens and one of 9 that is padded."""
    rng = np.random.default_rng(0)
    rows = [{"input_ids": rng.integers(3, 30, length).tolist()} for length in (16, 9)]
    return EvaluationWindows(
        datasets.Dataset.from_list(rows).cast_column("input_ids", datasets.List(datasets.Value("uint16"))), 16
    )


def count(weights):
    """Sum up the attention `[Q, K]` of the later half of the queries by octave, one pair at a time."""
    shares = np.zeros(5)
    queries = range(len(weights) // 2, len(weights))
    for query in queries:
        for key in range(query + 1):
            (octave,) = (i for i, (first, last) in enumerate(octaves(16)) if first <= query - key <= last)
            shares[octave] += weights[query, key] / len(queries)
    return shares


def test_octaves_cover_every_distance_of_a_window_once():
    assert octaves(16) == [(0, 0), (1, 1), (2, 3), (4, 7), (8, 15)]
    assert octaves(17)[-1] == (16, 31)


def test_it_equals_a_count_of_every_pair_of_tokens(model, windows):
    found = attention_by_distance(model, windows)
    expected = np.zeros((2, 4, 5))
    for index, length in enumerate((16, 9)):
        ids = windows[index]["input_ids"][None, :length]
        with torch.no_grad():
            attentions = model(ids, output_attentions=True).attentions
        for layer, head in np.ndindex(2, 4):
            expected[layer, head] += count(attentions[layer][0, head].numpy()) / 2
    assert found == pytest.approx(expected, abs=1e-6)
    assert found.sum(axis=-1) == pytest.approx(1, abs=1e-6)


def test_heads_that_see_all_alike_have_the_shares_of_the_distances(model, windows):
    for name, parameter in model.named_parameters():
        if "qkv" in name or "relative" in name:
            torch.nn.init.zeros_(parameter)
    uniform = [np.tril(np.ones((length, length))) / np.arange(1, length + 1)[:, None] for length in (16, 9)]
    expected = sum(map(count, uniform)) / 2
    assert attention_by_distance(model, windows) == pytest.approx(np.tile(expected, (2, 4, 1)), abs=1e-6)
