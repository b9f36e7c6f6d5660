"""The same tokens are scored with both sides given and with the prefix alone."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutput

from evaluation.infilling import measure_infilling
from tokenization import MusicTxTokenizer, PerformanceWithControls

TOKENIZER = MusicTxTokenizer.from_miditok(PerformanceWithControls())


class CertainIfTold(nn.Module):
    """Gives every token the same probability; with a suffix before it, one of e times the others to the right one."""

    def __init__(self, gain: float):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, input_ids, use_cache):
        logits = torch.zeros(*input_ids.shape, len(TOKENIZER))
        if (input_ids == TOKENIZER.infill_ids.suffix).any():
            logits[0, torch.arange(input_ids.shape[1] - 1), input_ids[0, 1:]] = self.gain
        return CausalLMOutput(logits=logits)


def test_what_the_suffix_tells_lowers_the_first_number_alone(make_score):
    rows = [np.array([*TOKENIZER(make_score(seed, seconds=40.0))["input_ids"], 2]) for seed in range(3)]
    vocabulary = len(TOKENIZER)
    deaf = measure_infilling(CertainIfTold(0.0), TOKENIZER, rows, num_gaps=10)
    told = measure_infilling(CertainIfTold(2.0), TOKENIZER, rows, num_gaps=10)
    assert deaf.infilling == pytest.approx(np.log(vocabulary), rel=1e-5)
    assert deaf.continuation == told.continuation == pytest.approx(np.log(vocabulary), rel=1e-5)
    assert told.infilling == pytest.approx(np.log(vocabulary - 1 + np.exp(2)) - 2, rel=1e-5)
    assert deaf.tokens == told.tokens > 500


def test_a_model_without_infilling_is_refused():
    with pytest.raises(ValueError, match="not trained for infilling"):
        measure_infilling(CertainIfTold(0.0), MusicTxTokenizer(), [])


def test_pieces_too_short_for_gaps_end_in_one_line():
    tokens = ["BOS_None", "Velocity_62", "NoteOn_60", "TimeShift_9", "NoteOff_60", "EOS_None"]
    piece = np.array(TOKENIZER.convert_tokens_to_ids(tokens))
    with pytest.raises(ValueError, match="only 0 of 3 gaps have music on both sides"):
        measure_infilling(CertainIfTold(0.0), TOKENIZER, [piece], num_gaps=3)
