"""The ONNX program has the logits of the model, whatever the calls that the tokens come in, and past its window."""

import numpy as np
import pytest
import torch
from tiny_models import make_model

from hub.decoder_program import CHUNK, DecoderProgram, ProgramSession, export_program, lost_nats, quantize_program
from modeling_music_tx import MusicTxForCausalLM
from tokenization import MusicTxTokenizer

WINDOW = 80

# Weights large enough that a wrong distance, or a missing mixture of values, shows in the logits.
SHAPE = {"num_hidden_layers": 2, "initializer_range": 0.3, "sliding_window": WINDOW}
MODELS = {
    "a table shorter than the window": {"max_relative_distance": 24},
    "a table longer than all distances": {"max_relative_distance": 200},
    "mixed values": {"max_relative_distance": WINDOW, "value_residual": True},
}

# Calls of one token and of several, up to the longest, across the end of the ring and far past it.
CALLS = [CHUNK, 1, 1, 13, 2, 1, CHUNK, CHUNK - 1, 1, 1, 1, 40, 5, 1]


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS)
def exported(request, tmp_path_factory) -> tuple[MusicTxForCausalLM, "Path"]:  # noqa: F821
    """A model and its program."""
    model = make_model(MusicTxTokenizer(), **{**SHAPE, **request.param}).eval()
    path = tmp_path_factory.mktemp("program") / "decoder.onnx"
    export_program(DecoderProgram(model), path)
    return model, path


@torch.no_grad()
def test_logits_equal_those_of_one_pass_without_a_cache(exported):
    model, path = exported
    ids = np.random.default_rng(0).integers(3, model.config.vocab_size, sum(CALLS))
    expected = model(torch.from_numpy(ids)[None], use_cache=False).logits[0].numpy()
    session, found = ProgramSession(path, 1), []
    for call in np.split(ids, np.cumsum(CALLS)[:-1]):
        found.append(session(call.tolist()))
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-4)
    assert np.abs(expected).max() > 1


@torch.no_grad()
def test_the_program_of_the_same_layers_in_pytorch_forgets_what_is_out_of_the_window(exported):
    model, path = exported
    ids = np.random.default_rng(1).integers(3, model.config.vocab_size, 3 * WINDOW).tolist()
    other = [5 + id_ % 100 for id_ in ids[: WINDOW // 2]] + ids[WINDOW // 2 :]
    first, second = ProgramSession(path, 1), ProgramSession(path, 1)
    far, near = WINDOW // 2 + 2 * (WINDOW - 1), WINDOW // 2 + 1  # two layers see twice as far
    first, second = first(ids), second(other)
    np.testing.assert_array_equal(first[far:], second[far:])
    assert np.abs(first[near] - second[near]).max() > 1e-3


def test_nothing_in_the_file_tells_of_the_machine_that_wrote_it(exported):
    _, path = exported
    assert b".py" not in path.read_bytes()


def test_eight_bits_are_a_quarter_of_the_size_and_cost_little(tmp_path):
    model = make_model(MusicTxTokenizer(), num_hidden_layers=2, hidden_size=64, intermediate_size=256)
    path, small = tmp_path / "decoder.onnx", tmp_path / "small.onnx"
    export_program(DecoderProgram(model, 64), path)
    quantize_program(path, small)
    assert small.stat().st_size < 0.5 * path.stat().st_size
    assert 0 < lost_nats(path, small, tokens=64) < 0.01
    assert lost_nats(path, path, tokens=8) == 0


@pytest.mark.parametrize(
    "fields", [{"position_embedding": "sinusoidal"}, {"max_relative_distance": 0}], ids=["sinusoids", "no table"]
)
def test_positions_that_cannot_slide_are_refused(fields):
    with pytest.raises(ValueError, match="cannot be exported: the window"):
        DecoderProgram(make_model(MusicTxTokenizer(), **fields))
