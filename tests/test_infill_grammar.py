"""Whatever the weights, a filled gap joins exactly: no note outside of it changes, and the piece is well-formed."""

import io

import mido
import numpy as np
import pytest
import torch

from modeling_music_tx import MusicTxConfig, MusicTxForCausalLM
from tokenization import (
    MidiGenerationPipeline,
    MusicGrammar,
    MusicTxTokenizer,
    PerformanceWithControls,
    generate_music,
)
from tokenization.infill_grammar import Gap, InfillGrammar
from tokenization.performance import FOREVER, events_to_notes

TOKENIZER = MusicTxTokenizer.from_miditok(PerformanceWithControls())
PLAIN = MusicTxTokenizer()
ENCODING = TOKENIZER.miditok
WINDOW = 1024
CONTROLS = {"density": 9, "loudness": [(0, 40), (3, 80)], "note_length": "planned", "composer": "Chopin"}


@pytest.fixture(scope="module")
def pieces(make_score):
    """Pieces from BOS on."""
    return [np.array(TOKENIZER(make_score(seed, seconds=25.0))["input_ids"]) for seed in range(8)]


@pytest.fixture(scope="module")
def model():
    """A model that has learned nothing, so that it breaks every rule it can."""
    torch.manual_seed(0)
    fields = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = MusicTxConfig(vocab_size=len(TOKENIZER), max_relative_distance=64, sliding_window=WINDOW, **fields)
    return MusicTxForCausalLM(config).eval()


def outside(ids, start: int, stop: int) -> list[tuple]:
    """The notes of a piece that do not lie wholly in the steps of a gap."""
    notes, length = events_to_notes(ENCODING.ids_to_events(np.asarray(ids)))
    ends = np.where(notes.end == FOREVER, length, notes.end).tolist()
    found = zip(notes.start.tolist(), ends, notes.pitch.tolist(), notes.velocity.tolist(), strict=True)
    return sorted(note for note in found if not (start <= note[0] and note[1] < stop))


def assert_joined(piece, filled, start: int, stop: int):
    """Check a filled piece: the rest is kept, the encoding canonical, and the MIDI file holds the same notes."""
    length = round(TOKENIZER.token_seconds[piece].sum() * 100)
    stop = length + 1 if stop >= length else stop
    assert outside(filled, start, stop) == outside(piece, start, stop)
    assert MusicGrammar(TOKENIZER).violations(filled) == []
    score = TOKENIZER.to_score(filled)
    assert [1, *TOKENIZER.encode(score, add_special_tokens=False), 2] == filled.tolist()
    midi = mido.MidiFile(file=io.BytesIO(score.dumps_midi()))
    strikes = sum(message.type == "note_on" and message.velocity > 0 for message in midi)
    assert strikes == len(score.tracks[0].notes)


@pytest.mark.parametrize("seed", range(30))
def test_random_scores_fill_any_gap_exactly(seed, pieces):
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    piece = pieces[seed % len(pieces)]
    seconds = float(TOKENIZER.token_seconds[piece].sum())
    if seed % 3 == 0:
        piece = ENCODING.insert_controls(piece, composer=2)
    start = [0.0, seconds - 0.5, *random.uniform(0, seconds - 1, 8)][seed % 10]
    stop = start + float(np.exp(random.uniform(np.log(0.02), np.log(6))))
    gap = Gap(piece, TOKENIZER, start, stop, window=1024)
    options = [{}, {"max_note_seconds": 0.05, "pitch_range": (60, 61)}, {"max_polyphony": 1}][seed % 3]
    soft_max_tokens = int(random.choice([5, 50, 500]))
    grammar = InfillGrammar(TOKENIZER, gap, soft_max_tokens, controls=CONTROLS if seed % 2 else {}, **options)
    sequence, preferences = torch.from_numpy(gap.prompt)[None], 2 * torch.randn(len(TOKENIZER))
    while sequence[0, -1] != TOKENIZER.infill_ids.end:
        scores = grammar(sequence, preferences + 3 * torch.randn(1, len(TOKENIZER)))
        sequence = torch.cat([sequence, scores.softmax(-1).multinomial(1)], dim=1)
        assert sequence.shape[1] < len(gap.prompt) + soft_max_tokens + 3 * (128 + len(gap.kept)) + gap.join
    assert_joined(piece, gap.fill(sequence[0].numpy()), round(100 * start), round(100 * stop))


@pytest.mark.parametrize("options", [{"do_sample": True}, {"num_beams": 3}, {"do_sample": True, "num_beams": 3}, {}])
def test_a_model_fills_gaps_in_batches_and_with_beams(options, model, pieces):
    torch.manual_seed(1)
    for piece in pieces[:2]:
        samples = generate_music(
            model, TOKENIZER, piece, infill=(5.0, 6.5), num_samples=1 + 2 * bool(options), **options
        )
        for filled in samples:
            assert_joined(piece, filled, 500, 650)


def test_controls_apply_in_a_gap(model, pieces):
    class Watch:
        tokens = ()

        def put(self, ids):
            self.tokens += tuple(TOKENIZER.convert_ids_to_tokens(ids.flatten().tolist()))

        def end(self):
            pass

    watch = Watch()
    generate_music(model, TOKENIZER, pieces[0], infill=(5, 14), controls=CONTROLS, streamer=watch, do_sample=True)
    middle = watch.tokens[watch.tokens.index("Infill_Prefix") :]
    assert middle.count("Composer_Chopin") == middle.count("Density_9") == 3
    assert [token for token in middle if token.startswith("Loudness")] == ["Loudness_40", "Loudness_80", "Loudness_80"]


def test_the_pipeline_fills_a_gap(model, make_score):
    midi = MidiGenerationPipeline(model=model, tokenizer=TOKENIZER)
    piece = make_score(4, seconds=12.0)
    filled = midi(piece, infill=(3, 5), do_sample=True)
    kept = {(n.time, n.pitch) for n in TOKENIZER.to_score(TOKENIZER.encode(piece)).tracks[0].notes if n.time < 3000}
    assert kept <= {(note.time, note.pitch) for note in filled.tracks[0].notes}


@pytest.mark.parametrize(
    ("gap", "message"),
    [
        ((5, 5), "the gap from 5 to 5 seconds holds no music"),
        ((6, 5), "holds no music"),
        ((99, 120), r"must begin within the piece, which is 2\d(\.\d+)? s long"),
        ((1, 20), r"is too long: .* 1024 tokens"),
    ],
)
def test_a_gap_that_cannot_be_filled_is_refused_in_one_line(gap, message, model, pieces):
    with pytest.raises(ValueError, match=message):
        generate_music(model, TOKENIZER, pieces[0], infill=gap)


def test_a_model_that_was_not_trained_for_it_is_refused_with_what_to_do(model, pieces):
    with pytest.raises(ValueError, match=r"not trained for infilling.*PerformanceWithControls"):
        generate_music(model, PLAIN, pieces[0], infill=(5, 7))


def test_infilling_needs_a_piece_and_has_no_ending(model, pieces):
    with pytest.raises(ValueError, match="needs one piece"):
        generate_music(model, TOKENIZER, infill=(5, 7))
    with pytest.raises(ValueError, match="a gap ends where the rest of the piece begins"):
        generate_music(model, TOKENIZER, pieces[0], infill=(5, 7), ending=True)
