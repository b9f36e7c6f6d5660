"""A recipe is read, completed and checked before anything is trained."""

from typing import get_args

import pytest
from tiny_training import RECIPES

from modeling_music_tx import MusicTxConfig
from training.recipe import CONFIG_FIELDS, Recipe, parse


def test_the_command_line_wins_over_the_recipe_and_the_recipe_over_the_defaults(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("corpus: here\noutput_dir: there\nlearning_rate: 1e-4\nhidden_size: 96\naugment: false\n")
    parsed, config = parse([str(recipe), "--output_dir", "elsewhere", "--num_hidden_layers", "3"])
    assert (parsed.corpus, parsed.output_dir, parsed.learning_rate) == ("here", "elsewhere", 1e-4)
    assert parsed.augment is False
    assert config == {"hidden_size": 96, "num_hidden_layers": 3}
    assert parsed.seed == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("corpus: a\noutput_dir: b\nlerning_rate: 1\n", "--lerning_rate"),
        ("corpus: a\noutput_dir: b\nmax_steps: many\n", "many"),
        ("corpus: a\noutput_dir: b\nhidden_size: 250\nnum_attention_heads: 8\n", "try 248 or 256"),
        ("corpus: a\noutput_dir: b\nsave_steps: 0\n", "save_steps (0) must be at least 1"),
        ("corpus: a\noutput_dir: b\nshort_fraction: 2\n", "short_fraction (2.0) must be from 0 to 1"),
        ("corpus: a\noutput_dir: b\ndecay_fraction: .nan\n", "decay_fraction (nan) must be from 0 to 1"),
        ("corpus: a\noutput_dir: b\nsave_total_limit: -1\n", "save_total_limit (-1) must be at least 1"),
        ("corpus: a\noutput_dir: b\nlearning_rate: -1\n", "learning_rate (-1.0) must be a finite number, 0 or more"),
        ("corpus: a\noutput_dir: b\nmax_steps: -3\n", "max_steps (-3) must be at least 1"),
        ("corpus: &a b\noutput_dir: *a\n", "aliases are not allowed"),
        ("corpus: a\noutput_dir: b\nshort_fraction: 0.5\nsequence_length: 65\n", "(65) must be a multiple of 2"),
        ("output_dir: b\n", "--corpus"),
        ("just text", "field: value"),
        ("a: [", "cannot be read"),
        ("a: " + 20_000 * "[", "cannot be read"),
        (f"corpus: a\noutput_dir: b\nmax_steps: {5_000 * '9'}\n", "cannot be read"),
        (None, "cannot be read"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_wrong_recipe_ends_in_one_clear_line(text, message, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    if text is not None:
        recipe.write_text(text)
    with pytest.raises(SystemExit) as exit_:
        parse([str(recipe)])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_says_what_it_is_for_and_how_it_is_run(recipe):
    header = recipe.read_text().partition("\ncorpus:")[0]
    for words in ("Data:", "Launch:", "Expected:", "python -m corpus.prepare", f"train.py recipes/{recipe.name}"):
        assert words in header, words


def test_the_help_of_a_flag_that_turns_something_off_says_so(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--no_augment, --no-augment the opposite of --augment " in text


def test_a_recipe_may_set_every_field_of_the_model_but_what_the_tokenizer_decides(capsys):
    decided = {"vocab_size", "use_cache", "pad_token_id", "bos_token_id", "eos_token_id"}
    assert list(CONFIG_FIELDS) == [name for name in MusicTxConfig.__annotations__ if name not in decided]
    for name, field in CONFIG_FIELDS.items():
        annotation = MusicTxConfig.__annotations__[name]
        assert field.kind in (get_args(annotation) or (annotation,)), name
    with pytest.raises(SystemExit):
        parse(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--head_dim HEAD_DIM Width of one head; hidden_size / num_attention_heads when not given." in text


def test_short_crops_double_in_length_as_often_as_they_were_halved_and_keep_the_tokens_of_a_step():
    recipe = Recipe("", "", sequence_length=1024, batch_size=2, max_steps=10, short_fraction=0.8, halvings=2)
    assert [recipe.batch_shape(step) for step in (0, 3, 4, 7, 8, 9)] == [
        (8, 256),
        (8, 256),
        (4, 512),
        (4, 512),
        (2, 1024),
        (2, 1024),
    ]
