"""A configuration is completed, saved and validated as documented."""

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError

from modeling_music_tx import MusicTxConfig


def test_the_head_dimension_follows_from_the_hidden_size_unless_given():
    assert MusicTxConfig(hidden_size=256, num_attention_heads=8).head_dim == 32
    assert MusicTxConfig(hidden_size=256, num_attention_heads=8, head_dim=64).head_dim == 64


def test_a_configuration_comes_back_from_disk_as_it_was(tmp_path):
    config = MusicTxConfig(hidden_size=96, num_attention_heads=3, sliding_window=512, attention_dropout=0.1)
    config.save_pretrained(tmp_path)
    assert MusicTxConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 250, "num_attention_heads": 8}, "try 248 or 256"),
        ({"max_relative_distance": -1}, "0 (no relative term) or more"),
        ({"position_embedding": "rotary"}, '"none" or "sinusoidal"'),
        ({"position_embedding": "sinusoidal", "sliding_window": 512}, "sliding_window (512)"),
        ({"sliding_window": 1}, "must be 2 or more"),
        ({"attention_dropout": 1.0}, "less than 1"),
        ({"num_hidden_layers": 0}, "num_hidden_layers (0) must be at least 1"),
    ],
)
def test_wrong_numbers_are_refused_with_what_is_allowed(fields, message):
    with pytest.raises((ValueError, StrictDataclassClassValidationError)) as error:
        MusicTxConfig(**fields)
    assert message in str(error.value)
