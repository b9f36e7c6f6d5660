"""The shipped checkpoint is complete: small safetensors, the shape of its recipe, and a trained model."""

from pathlib import Path

from symusic import Note, Score, Tempo, Track
from transformers import AutoModelForCausalLM, AutoTokenizer

import train
from training.recipe import Recipe, parse

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "checkpoints" / "maestro-small"


def test_its_weights_are_small_and_nothing_in_it_is_pickled():
    assert sum(path.stat().st_size for path in CHECKPOINT.glob("*.safetensors")) <= 20_000_000
    assert {path.suffix for path in CHECKPOINT.iterdir()} <= {".json", ".md", ".mid", ".png", ".safetensors"}


def test_its_shape_is_that_of_its_recipe():
    _, given = parse([str(ROOT / "recipes" / "maestro_small.yaml")])
    config = AutoModelForCausalLM.from_pretrained(CHECKPOINT).config
    assert {name: getattr(config, name) for name in given} == given


def test_it_expects_a_scale_to_go_on_more_than_an_untrained_model_would():
    track = Track(program=0)
    for beat in range(48):
        octave, degree = divmod(beat % 14, 7)
        track.notes.append(Note(beat * 240, 230, 60 + 12 * octave + (0, 2, 4, 5, 7, 9, 11)[degree], 70))
    score = Score(480)
    score.tempos.append(Tempo(0, 120))
    score.tracks.append(track)
    tokenizer, model = AutoTokenizer.from_pretrained(CHECKPOINT), AutoModelForCausalLM.from_pretrained(CHECKPOINT)
    ids = tokenizer(score, return_tensors="pt")["input_ids"]
    untrained = train.make_model(tokenizer, {}, Recipe("a", "b"))
    assert untrained(ids, labels=ids).loss.item() > 5.5
    assert model(ids, labels=ids).loss.item() < 3
