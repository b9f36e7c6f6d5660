"""A cache with buffers behaves as Transformers' own, whatever is done to it, and seldom copies."""

import copy

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from modeling_music_tx import MusicTxConfig, MusicTxForCausalLM
from modeling_music_tx.buffered_cache import BufferedLayer, BufferedSlidingWindowLayer, append

WINDOW = 9


def states(length: int, seed: int, batch: int = 2) -> torch.Tensor:
    """Keys and values, [2, B, H, N, D]."""
    return torch.randn(2, batch, 3, length, 4, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["full", "window"])
def layers(request) -> tuple[DynamicLayer, BufferedLayer | BufferedSlidingWindowLayer]:
    """Transformers' layer and ours."""
    if request.param == "full":
        return DynamicLayer(), BufferedLayer()
    return DynamicSlidingWindowLayer(WINDOW), BufferedSlidingWindowLayer(WINDOW)


def update_both(layers, length: int, seed: int, batch: int = 2):
    """Update both layers with the same keys and values, and compare what they return, keep and report for masks."""
    theirs, ours = layers
    assert ours.get_mask_sizes(length) == theirs.get_mask_sizes(length)
    expected = theirs.update(*states(length, seed, batch))
    found = ours.update(*states(length, seed, batch))
    for one, other in zip((*found, ours.keys, ours.values), (*expected, theirs.keys, theirs.values), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert ours.get_seq_length() == theirs.get_seq_length()


@pytest.mark.parametrize("lengths", [[1] * 60, [5, *[1] * 40], [30, *[1] * 40, 20, 3, *[1] * 9], [8, 1, 9, 1, 10, 1]])
@torch.no_grad()
def test_it_returns_and_keeps_what_transformers_own_layer_does(layers, lengths):
    for seed, length in enumerate(lengths):
        update_both(layers, length, seed)


CHANGES = {
    "repeated": lambda layer: layer.batch_repeat_interleave(2),
    "selected": lambda layer: layer.batch_select_indices(torch.tensor([1, 0, 1, 1])),
    "reordered": lambda layer: layer.reorder_cache(torch.tensor([1, 0])),
    "reset": lambda layer: layer.reset(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@torch.no_grad()
def test_a_batch_may_change_between_two_tokens(layers, change):
    for seed, length in enumerate((12, 1, 1)):
        update_both(layers, length, seed)
    for layer in layers:
        change(layer)
    batch = layers[0].keys.shape[0] if layers[0].is_initialized else 4
    for seed in range(20):
        update_both(layers, 1, seed, batch)


@torch.no_grad()
def test_a_part_of_the_batch_does_not_write_into_the_others(layers):
    update_both(layers, 12, seed=0)
    for layer in layers:
        layer.keys, layer.values = layer.keys[:1], layer.values[:1]
    for seed in range(20):
        update_both(layers, 1, seed, batch=1)


@torch.no_grad()
def test_tokens_may_be_taken_back_before_the_window_is_full(layers):
    update_both(layers, 7, seed=0)
    for layer in layers:
        layer.crop(-3)
    for seed in range(20):
        update_both(layers, 1, seed)


@torch.no_grad()
def test_drafts_may_be_taken_back_at_any_time(layers):
    for layer in layers:
        if layer.is_sliding:
            layer.activate_past_recording()
    for seed in range(12):
        update_both(layers, 4, seed)
        for layer in layers:
            layer.crop(-2)


@torch.no_grad()
def test_two_ways_on_from_one_beginning_do_not_meet(layers):
    update_both(layers, 5, seed=0)
    ways = copy.deepcopy(layers), copy.deepcopy(layers)
    for step in range(10):
        for seed, way in zip((step, 100 + step), ways, strict=True):
            update_both(way, 1, seed)


@torch.no_grad()
def test_what_was_handed_out_stays_as_it_was(layers):
    handed_out = []
    for seed in range(40):
        keys, _ = layers[1].update(*states(1, seed))
        handed_out.append((keys, keys.clone()))
    for keys, before in handed_out:
        assert torch.equal(keys, before)


def test_gradients_flow_through_it(layers):
    first, second = states(5, seed=0).requires_grad_(), states(1, seed=1).requires_grad_()
    gradients = []
    for layer in layers:
        # As attention does, the first call keeps for its gradient what the second adds to.
        total = sum((part**3).sum() for call in (first, second) for part in layer.update(*call))
        gradients.append(torch.autograd.grad(total, (first, second)))
    for theirs, ours in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_modes_may_change_between_two_tokens(layers):
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            for length in (1, 6, 1):
                update_both(layers, length, seed=length)


@pytest.mark.parametrize(("window", "copies"), [(None, 16), (100, 28)], ids=["full", "window"])
def test_what_is_kept_is_copied_once_in_many_tokens(window, copies):
    rows, buffer, buffers = torch.empty(0), None, []
    for step in range(1000):
        rows, buffer = append(rows, torch.full((1, 1, 1, 2), step), buffer)
        buffers += [buffer] if not buffers or buffer is not buffers[-1] else []
        rows = rows[:, :, -window:] if window else rows
    assert len(buffers) <= copies
    assert rows[0, 0, :, 0].tolist() == list(range(1000 - rows.shape[2], 1000))
    assert rows.shape[2] == (window or 1000)
    assert buffer.tensor.shape[2] <= 1.5 * (rows.shape[2] + 1)


@torch.no_grad()
def test_what_was_returned_never_changes_when_branches_crops_and_returned_rows_go_on(layers):
    for seed, length in enumerate((4, 1, 1)):
        update_both(layers, length, seed)
    returned = [[layer.keys, layer.values] for layer in layers]
    before = [[rows.clone() for rows in pair] for pair in returned]
    branches = [[copy.copy(layer) for layer in layers] for _ in range(2)]
    for seed, branch in enumerate(branches):
        for length in (1, 2, 1):
            update_both(branch, length, 10 * seed + length)
    for seed, branch in enumerate(branches):
        update_both(branch, 1, 90 + seed)
    for layer, pair in zip(layers, returned, strict=True):
        layer.keys, layer.values = (rows[:, :, :-1] for rows in pair)
    update_both(layers, 1, 99)
    for pair, kept in zip(returned, before, strict=True):
        assert all(torch.equal(rows, same) for rows, same in zip(pair, kept, strict=True))


@pytest.mark.parametrize(("window", "kind"), [(None, BufferedLayer), (WINDOW, BufferedSlidingWindowLayer)])
@torch.no_grad()
def test_generate_and_the_model_create_it_and_leave_a_cache_of_the_caller_as_it_is(window, kind):
    config = MusicTxConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, sliding_window=window
    )
    model = MusicTxForCausalLM(config).eval()
    prompt = torch.randint(3, 40, (2, 5), generator=torch.Generator().manual_seed(0))
    output = model.generate(prompt, max_new_tokens=30, return_dict_in_generate=True)
    assert [type(layer) for layer in output.past_key_values.layers] == [kind, kind]
    assert type(model(prompt, use_cache=True).past_key_values.layers[0]) is kind
    given = DynamicCache(config=config)
    kinds = [type(layer) for layer in given.layers]
    model.generate(prompt, past_key_values=given, max_new_tokens=30)
    assert [type(layer) for layer in given.layers] == kinds
