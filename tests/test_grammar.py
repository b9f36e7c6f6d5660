"""The grammar allows exactly the sequences that the tokenizer writes."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from transformers import CompileConfig, LlamaConfig, LlamaForCausalLM

from tokenization import MusicTxTokenizer
from tokenization.grammar import CACHE_KEY_TOKENS, PIANO, GrammarState, MaxSeconds, MusicGrammar

TOKENIZER = MusicTxTokenizer()
IDS = {token.removesuffix("_None"): i for token, i in TOKENIZER.get_vocab().items()}
TOKENS = {i: token for token, i in IDS.items()}
PAD, BOS, EOS = IDS["PAD"], IDS["BOS"], IDS["EOS"]
V = len(TOKENIZER)


def ids(music: str) -> list[int]:
    """The ids of tokens written one after the other."""
    return [IDS[token] for token in music.split()]


def allowed(grammar: MusicGrammar, sequences) -> torch.Tensor:
    """Which token may come next, bool, `[B, V]`."""
    sequences = torch.as_tensor(sequences)
    return grammar(sequences, torch.zeros(len(sequences), V)) == 0


def choice(grammar: MusicGrammar, music: str) -> list[str]:
    """The tokens that may come next."""
    return [TOKENS[i] for i in allowed(grammar, [ids(music)])[0].nonzero().flatten().tolist()]


def sample(grammar: MusicGrammar, sequences: torch.Tensor, length: int, spread: float = 3.0) -> torch.Tensor:
    """Draw tokens from random scores, as from an untrained model."""
    for _ in range(length):
        scores = grammar(sequences, spread * torch.randn(len(sequences), V))
        sequences = torch.cat([sequences, torch.multinomial(scores.softmax(-1), 1)], dim=1)
    return sequences


def faults(sequence, max_polyphony=128, max_note_steps=10**9, keys=range(128)) -> list[str]:
    """The violations of a piece from BOS on, by a second implementation of the rules, token by token."""
    tokens = [TOKENS[i] for i in sequence]
    found, struck, velocity, now, note = [], {}, None, 0, ()
    for last, token in pairwise(tokens[tokens.index("BOS") :]):
        last_kind, (kind, _, value) = last.partition("_")[0], token.partition("_")
        value = int(value or 0)
        if kind == "TimeShift":
            good = last_kind in ("NoteOn", "NoteOff") or last == "TimeShift_100"
            now, note = now + value, ()
        elif kind == "Velocity":
            good = last_kind not in ("Velocity", "EOS") and value != velocity
            velocity = value
        elif kind == "NoteOn":
            good = value in keys and value not in struck and len(struck) < max_polyphony and velocity is not None
            good &= last_kind != "EOS" and note < (1, value)
            note, struck[value] = (1, value), now
        elif kind == "NoteOff":
            good = value in struck and now - struck.pop(value) <= max_note_steps
            good &= last_kind != "Velocity" and note < (0, value)
            note = (0, value)
        elif kind == "EOS":
            good = not struck and last_kind == "NoteOff"
        else:
            good = token == "PAD" and last in ("EOS", "PAD")
        if not good:
            found.append(f"{token} after {last}")
    return found


NOTE = "BOS Velocity_62 NoteOn_60"
CHORD = f"{NOTE} NoteOn_64 NoteOn_67 TimeShift_100"


@pytest.mark.parametrize(
    ("music", "may_follow", "may_not_follow"),
    [
        ("BOS", "Velocity_2 Velocity_126", "NoteOn_60 NoteOff_60 TimeShift_1 EOS PAD"),
        ("BOS Velocity_62", "NoteOn_0 NoteOn_127", "Velocity_66 NoteOff_60 TimeShift_1 EOS"),
        (NOTE, "TimeShift_1 TimeShift_100 NoteOn_61 Velocity_2", "NoteOff_60 NoteOn_60 EOS"),
        # A key sounds until its NoteOff; a velocity is written when it changes.
        (f"{NOTE} TimeShift_9", "NoteOff_60 NoteOn_61 Velocity_66", "NoteOn_60 NoteOff_61 Velocity_62 EOS"),
        # Only the longest shift may be followed by another.
        (f"{NOTE} TimeShift_99", "NoteOff_60 NoteOn_59", "TimeShift_1 TimeShift_100"),
        (f"{NOTE} TimeShift_100", "TimeShift_1 TimeShift_100 NoteOff_60", "EOS"),
        # Keys ascend within a step, velocities or not, and NoteOffs come before NoteOns.
        (f"{NOTE} Velocity_2", "NoteOn_61", "NoteOn_59 NoteOn_60"),
        (f"{CHORD} NoteOff_64", "NoteOff_67 NoteOn_0 NoteOn_64 TimeShift_1", "NoteOff_60"),
        (f"{CHORD} NoteOn_62", "NoteOn_63 TimeShift_1", "NoteOff_60 NoteOff_67 NoteOn_61"),
        # A velocity needs a key that can still be struck.
        ("BOS Velocity_62 NoteOn_127", "TimeShift_1", "Velocity_2 NoteOn_126"),
        # The end follows the NoteOff that leaves silence, and padding the end.
        (f"{CHORD} NoteOff_60 NoteOff_64", "NoteOff_67 TimeShift_1", "EOS"),
        (f"{CHORD} NoteOff_60 NoteOff_64 NoteOff_67", "EOS TimeShift_100 NoteOn_60", "PAD"),
        (f"{NOTE} TimeShift_9 NoteOff_60 TimeShift_9", "NoteOn_60 Velocity_2", "NoteOff_60 EOS"),
        (f"{NOTE} TimeShift_9 NoteOff_60 EOS", "PAD", "EOS NoteOn_60 TimeShift_1 Velocity_2"),
        # A slice: its keys are taken as silent, its velocity as unknown.
        ("NoteOff_60 TimeShift_9", "NoteOn_60 NoteOn_61 Velocity_2 Velocity_126", "NoteOff_60 NoteOff_61 EOS"),
    ],
)
def test_what_may_follow(music, may_follow, may_not_follow):
    grammar = MusicGrammar(TOKENIZER)
    followers = choice(grammar, music)
    assert set(may_follow.split()) <= set(followers)
    assert not {"BOS", *may_not_follow.split()} & set(followers)
    assert all(grammar.violations(ids(f"{music} {token}")) == [] for token in may_follow.split())


@pytest.fixture(scope="module")
def pieces(make_score):
    """What the tokenizer makes of scores with chords, pedal and keys struck again, from BOS to EOS."""
    return [[*TOKENIZER(make_score(seed, seconds=20.0))["input_ids"], EOS] for seed in range(12)]


def test_every_piece_of_the_tokenizer_is_well_formed(pieces):
    for piece in pieces:
        assert faults(piece) == []
        assert MusicGrammar(TOKENIZER).violations(piece) == []


def test_every_slice_of_a_piece_is_well_formed(pieces):
    rng = np.random.default_rng(0)
    for piece in pieces * 8:
        start, stop = np.sort(rng.integers(0, len(piece) + 1, 2))
        assert MusicGrammar(TOKENIZER).violations(np.array(piece[start:stop], dtype=np.uint16)) == []


def test_a_prompt_may_be_any_slice_and_go_on_as_its_piece_did(pieces):
    length, new = 40, 100
    starts = np.random.default_rng(1).integers(1, [len(piece) - length - new for piece in pieces])
    rows = torch.tensor([piece[start : start + length + new] for piece, start in zip(pieces, starts, strict=True)])
    grammar = MusicGrammar(TOKENIZER)
    for t in range(length, length + new):
        for may, before, token in zip(allowed(grammar, rows[:, :t]), rows[:, :t], rows[:, t].tolist(), strict=True):
            kind, _, key = TOKENS[token].partition("_")
            hangs = kind == "NoteOff" and not {token, IDS[f"NoteOn_{key}"]} & set(before.tolist())
            assert may[token] != hangs


@pytest.mark.parametrize(
    ("music", "positions"),
    [
        ("BOS Velocity_62 NoteOn_60 TimeShift_5 NoteOn_60 TimeShift_5 NoteOff_60 EOS", [4]),
        ("PAD PAD BOS Velocity_62 NoteOn_60 TimeShift_5 NoteOff_61 NoteOff_60 EOS PAD", [6, 7]),
        ("BOS NoteOn_60 TimeShift_5 TimeShift_5 NoteOff_60 TimeShift_1 EOS", [1, 3, 6]),
        ("BOS Velocity_62 Velocity_66 NoteOn_60 EOS", [2, 4]),
        ("BOS Velocity_62 NoteOn_60 Velocity_66 NoteOn_60 TimeShift_5 NoteOff_60 EOS", [4]),
        ("BOS Velocity_62 NoteOn_60 TimeShift_5 NoteOff_60 EOS BOS", [6]),
        # A key can hang over into a slice only once.
        ("NoteOff_60 NoteOff_62 TimeShift_5 NoteOff_60 NoteOff_64 EOS", [3]),
        ("BOS", []),
        ("PAD PAD", []),
        ("", []),
    ],
)
def test_violations_are_found_where_they_stand(music, positions):
    assert MusicGrammar(TOKENIZER).violations(ids(music)) == positions


def test_violations_are_found_far_into_a_piece():
    piece = ids("BOS Velocity_62 NoteOn_50 TimeShift_1" + 1000 * " NoteOn_60 TimeShift_100 NoteOff_60 TimeShift_50")
    n = len(piece)
    end = ids("NoteOn_50 TimeShift_1 NoteOff_60 NoteOff_50")
    assert MusicGrammar(TOKENIZER).violations(piece + end) == [n, n + 2, n + 3]


@pytest.mark.parametrize("spread", [0.5, 3.0, 8.0])
def test_random_scores_give_well_formed_music(spread):
    torch.manual_seed(0)
    grammar = MusicGrammar(TOKENIZER)
    for row in sample(grammar, torch.full((100, 1), BOS), 120, spread).tolist():
        assert faults(row) == []
        assert grammar.violations(row) == []


@pytest.mark.parametrize("max_polyphony", [1, 3])
@pytest.mark.parametrize("max_note_seconds", [0.01, 0.25, 2])
@pytest.mark.parametrize("pitch_range", [(60, 60), (36, 96)])
def test_polyphony_note_length_and_keys_stay_within_their_limits(max_polyphony, max_note_seconds, pitch_range):
    torch.manual_seed(0)
    options = {"max_polyphony": max_polyphony, "max_note_seconds": max_note_seconds, "pitch_range": pitch_range}
    grammar = MusicGrammar(TOKENIZER, **options)
    for row in sample(grammar, torch.full((32, 1), BOS), 120).tolist():
        assert faults(row, max_polyphony, 100 * max_note_seconds, range(pitch_range[0], pitch_range[1] + 1)) == []
        assert grammar.violations(row) == []


def test_a_note_that_the_prompt_held_too_long_is_ended_first():
    grammar = MusicGrammar(TOKENIZER, max_note_seconds=1)
    assert choice(grammar, CHORD) == ["NoteOff_60"]
    assert choice(grammar, f"{CHORD} NoteOff_60") == ["NoteOff_64"]
    # Too late for a NoteOff in this step.
    assert choice(grammar, f"{CHORD} NoteOn_72") == ["TimeShift_1"]


def test_a_limit_for_notes_is_none_for_rests():
    silence = f"{NOTE} TimeShift_9 NoteOff_60"
    assert "TimeShift_100" in choice(MusicGrammar(TOKENIZER, max_note_seconds=0.1), silence)


def test_a_rest_lasts_no_longer_than_its_limit():
    grammar = MusicGrammar(TOKENIZER, max_rest_seconds=1.5)
    # 1.09 seconds since a key went down.
    music = f"{NOTE} TimeShift_9 NoteOff_60 TimeShift_100"
    assert {"TimeShift_41", "NoteOn_60"} <= set(choice(grammar, music))
    assert "TimeShift_42" not in choice(grammar, music)
    kinds = {token.partition("_")[0] for token in choice(grammar, f"{music} TimeShift_41")}
    assert kinds == {"NoteOn", "Velocity"}
    # A held chord is no music either.
    assert "TimeShift_51" not in choice(grammar, f"{NOTE} TimeShift_100")


def test_rests_stay_within_their_limit():
    torch.manual_seed(0)
    grammar = MusicGrammar(TOKENIZER, max_rest_seconds=1.2, max_polyphony=3, max_note_seconds=1, pitch_range=(60, 64))
    for row in sample(grammar, torch.full((50, 1), BOS), 150).tolist():
        assert faults(row, 3, 100, range(60, 65)) == []
        seconds = np.cumsum(TOKENIZER.token_seconds[row])
        onsets = [at for at, token in zip(seconds, row, strict=True) if TOKENS[token].startswith("NoteOn")]
        assert max(np.diff(onsets)) <= 1.2 + 1e-6


def test_keys_struck_before_what_the_model_sees_are_released_too():
    before = [ids(f"{NOTE} NoteOn_64 TimeShift_100"), ids("BOS Velocity_2 NoteOn_72 TimeShift_100 TimeShift_100")]
    grammar = MusicGrammar(TOKENIZER, before=before, max_note_seconds=3.5)
    # Two return sequences for each of two prompts.
    seen = torch.tensor([ids("NoteOff_64 TimeShift_100")] * 2 + [ids("NoteOn_40 TimeShift_100")] * 2)
    followers = [{TOKENS[i] for i in row.nonzero().flatten().tolist()} for row in allowed(grammar, seen)]
    assert followers[0] == followers[1]
    assert followers[2] == followers[3]
    assert {"NoteOff_60", "NoteOn_64", "Velocity_2"} <= followers[0]
    assert not {"NoteOn_60", "NoteOff_64", "NoteOff_72", "Velocity_62"} & followers[0]
    assert {"NoteOff_40", "NoteOff_72", "Velocity_62", "NoteOn_60", "TimeShift_50"} <= followers[2]
    # Their time counts, too.
    assert not {"NoteOn_72", "NoteOff_60", "Velocity_2", "TimeShift_51"} & followers[2]


def test_music_closes_at_a_rest_shortly_before_its_seconds_are_over():
    grammar = MusicGrammar(TOKENIZER, close_after_seconds=20, prompt_length=1)
    tone = " TimeShift_100 NoteOff_60 NoteOn_60"
    # The rest counts from 15 seconds on, in the last quarter.
    assert "NoteOn_61" in choice(grammar, NOTE + 13 * tone + " TimeShift_100")
    assert "NoteOn_61" in choice(grammar, NOTE + 15 * tone + " TimeShift_99")
    closing = NOTE + 14 * tone + " TimeShift_100"
    assert {token.partition("_")[0] for token in choice(grammar, closing)} == {"NoteOff", "TimeShift"}
    assert choice(grammar, f"{closing} NoteOff_60") == ["EOS"]
    assert choice(grammar, NOTE + 14 * tone + " TimeShift_50 NoteOff_60 TimeShift_50") == ["EOS"]


def test_music_closes_after_its_seconds_without_counting_the_prompt():
    torch.manual_seed(0)
    prompt = torch.tensor([ids(f"{CHORD} NoteOff_60"), ids(f"PAD PAD PAD PAD {NOTE}")]).repeat(20, 1)
    length = prompt.shape[1]
    limits = {"max_note_seconds": 1, "max_polyphony": 6, "close_after_seconds": 3}
    grammar = MusicGrammar(TOKENIZER, **limits, prompt_length=length)
    for row in sample(grammar, prompt, 200).tolist():
        assert faults(row) == []
        new = row[length : row.index(EOS)]
        seconds = np.cumsum(TOKENIZER.token_seconds[new]).round(2)
        assert all(at < 3 for at, token in zip(seconds, new, strict=True) if TOKENS[token].startswith("NoteOn"))
        # What began just before the close may last its second.
        assert seconds[-1] < 4


@pytest.mark.parametrize("rest", ["", "TimeShift_9", "Velocity_2"])
def test_closing_at_once_ends_what_the_prompt_left(rest):
    assert choice(MusicGrammar(TOKENIZER, close_after_seconds=0), f"{NOTE} TimeShift_9 NoteOff_60 {rest}") == ["EOS"]


ALL_OPTIONS = {
    "max_polyphony": 5,
    "max_note_seconds": 0.5,
    "max_rest_seconds": 0.7,
    "pitch_range": (40, 90),
    "close_after_seconds": 2,
    "prompt_length": 20,
}


@pytest.mark.parametrize("options", [{}, ALL_OPTIONS])
def test_there_is_a_next_token_whatever_came_before(options):
    torch.manual_seed(0)
    noise = torch.randint(0, V, (200, 60))
    grammar = MusicGrammar(TOKENIZER, **options)
    for t in range(1, 60):
        assert allowed(grammar, noise[:, :t]).any(1).all()


@pytest.mark.parametrize("options", [{}, ALL_OPTIONS])
def test_token_by_token_allows_what_the_whole_sequence_allows(options, pieces):
    torch.manual_seed(0)
    rows = torch.cat([torch.tensor([piece[:90] for piece in pieces]), torch.randint(0, V, (8, 90))])
    grammar = MusicGrammar(TOKENIZER, **options)
    for t in range(1, 90):
        assert torch.equal(allowed(grammar, rows[:, :t]), allowed(MusicGrammar(TOKENIZER, **options), rows[:, :t]))


def test_rows_may_change_places_as_beams_do(pieces):
    torch.manual_seed(0)
    rows = torch.tensor([piece[:80] for piece in pieces])
    grammar = MusicGrammar(TOKENIZER)
    for t in range(60, 80):
        rows = rows[torch.randperm(len(rows))]
        assert torch.equal(allowed(grammar, rows[:, :t]), allowed(MusicGrammar(TOKENIZER), rows[:, :t]))


def test_a_token_costs_the_same_however_long_the_sequence_and_wherever_its_row_goes(pieces, monkeypatch):
    rows = torch.tensor([piece[:400] for piece in pieces])
    calls = []
    advance = GrammarState.advance
    monkeypatch.setattr(GrammarState, "advance", lambda state, *event: (calls.append(event), advance(state, *event)))
    rules = [MusicGrammar(TOKENIZER, **PIANO), MaxSeconds(TOKENIZER, 9.0, 1)]
    for rule in rules:
        rule(rows[:, :300], torch.zeros(len(rows), V))
    calls.clear()
    for t in range(301, 400):
        rows = rows[torch.randint(len(rows), (len(rows),))]
        for rule in rules:
            rule(rows[:, :t], torch.zeros(len(rows), V))
    assert len(calls) == 99 * len(rows)
    assert rules[1](rows, None).tolist() == MaxSeconds(TOKENIZER, 9.0, 1)(rows, None).tolist()


def test_tokens_may_be_taken_back_as_in_assisted_decoding(pieces):
    rows, draft = torch.tensor([pieces[0][:60]]), torch.tensor([pieces[1][:60]])
    grammar = MusicGrammar(TOKENIZER)
    for t in range(20, 60, 3):
        for t_ahead in range(5):
            both = torch.cat([rows[:, :t], draft[:, t : t + t_ahead]], dim=1)
            assert torch.equal(allowed(grammar, both), allowed(MusicGrammar(TOKENIZER), both))


def test_another_sequence_is_not_taken_for_the_last_one_even_in_its_memory():
    grammar = MusicGrammar(TOKENIZER)
    memory = torch.tensor([ids(f"{NOTE} NoteOn_64 TimeShift_9")])
    allowed(grammar, memory[:, :-1])
    memory[0, 2] = IDS["NoteOn_59"]
    followers = allowed(grammar, memory)[0]
    assert followers[IDS["NoteOff_59"]]
    assert not followers[IDS["NoteOff_60"]]


def test_a_key_is_remembered_however_long_it_sounds():
    tones = CACHE_KEY_TOKENS // 2 * " NoteOn_60 TimeShift_100 NoteOff_60 TimeShift_50"
    music = torch.tensor([ids("BOS Velocity_62 NoteOn_50 TimeShift_1" + tones)])
    grammar = MusicGrammar(TOKENIZER)
    for t in range(1, music.shape[1] + 1):
        followers = allowed(grammar, music[:, :t])[0]
    assert followers[ids("NoteOff_50 Velocity_66")].all()
    assert not followers[ids("NoteOn_50 Velocity_62")].any()


def test_padding_on_the_left_changes_nothing(pieces):
    prompts = [piece[: 10 + 7 * i] for i, piece in enumerate(pieces)]
    batch = TOKENIZER.pad({"input_ids": prompts}, return_tensors="pt")["input_ids"]
    assert batch[0, 0] == PAD
    alone = torch.cat([allowed(MusicGrammar(TOKENIZER), [prompt]) for prompt in prompts])
    assert torch.equal(allowed(MusicGrammar(TOKENIZER), batch), alone)


def test_scores_of_allowed_tokens_stay_as_they_are_and_those_of_no_token_are_masked():
    scores = torch.randn(1, V + 9)
    masked = MusicGrammar(TOKENIZER)(torch.tensor([[BOS]]), scores)
    expected = torch.full((1, V + 9), -torch.inf)
    velocities = [i for token, i in IDS.items() if token.startswith("Velocity")]
    expected[:, velocities] = scores[:, velocities]
    assert torch.equal(masked, expected)


@pytest.fixture(scope="module")
def model():
    """A small model with random weights; the grammar does not ask of what family."""
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
    return LlamaForCausalLM(LlamaConfig(vocab_size=V, initializer_range=0.5, **size, **special)).eval()


@pytest.mark.parametrize(
    "how",
    [
        pytest.param({"do_sample": True, "top_k": 20, "temperature": 1.5}, id="sampled"),
        pytest.param({"do_sample": False}, id="greedy"),
        pytest.param({"do_sample": False, "num_beams": 4, "num_return_sequences": 2}, id="beams"),
        pytest.param({"do_sample": True, "num_beams": 4}, id="sampled-beams"),
        pytest.param({"do_sample": True, "cache_implementation": "static"}, id="static-cache"),
        pytest.param({"do_sample": True, "cache_implementation": "static", "compiled": True}, id="compiled"),
    ],
)
def test_generate_writes_well_formed_music_for_a_padded_batch(model, pieces, how):
    torch.manual_seed(0)
    prompts = TOKENIZER.pad({"input_ids": [pieces[0][:50], [BOS], pieces[1][:23]]}, return_tensors="pt")
    if how.pop("compiled", False):
        # The grammar is not compiled; it gets the ids in the form in which a compiled `generate` keeps them.
        how["compile_config"] = CompileConfig(backend="eager")
        how["compile_config"]._compile_all_devices = True
    grammar = MusicGrammar(TOKENIZER)
    rows = model.generate(**prompts, logits_processor=[grammar], max_new_tokens=40, **how)
    assert rows.shape[1] > 50
    assert [grammar.violations(row) for row in rows] == [[]] * len(rows)


def test_generate_writes_well_formed_music_with_prompt_lookup(model, pieces):
    grammar = MusicGrammar(TOKENIZER)
    prompt = torch.tensor([pieces[0][:200]])
    (row,) = model.generate(prompt, logits_processor=[grammar], max_new_tokens=60, prompt_lookup_num_tokens=5)
    assert grammar.violations(row) == []


def test_rows_stop_apart_when_their_seconds_are_over(model):
    torch.manual_seed(0)
    prompt = torch.tensor([ids(f"{NOTE} TimeShift_100 TimeShift_100")] * 6)
    length = prompt.shape[1]
    rows = model.generate(
        prompt,
        do_sample=True,
        logits_processor=[MusicGrammar(TOKENIZER)],
        stopping_criteria=[MaxSeconds(TOKENIZER, 2.5, length)],
        max_new_tokens=1000,
    )
    lengths = set()
    for row in rows.tolist():
        new = [i for i in row[length:] if i != PAD]
        seconds = np.cumsum(TOKENIZER.token_seconds[new]).round(2)
        assert new[-1] == EOS or seconds[-2] < 2.5 <= seconds[-1]
        lengths.add(len(new))
    assert len(lengths) > 1


def test_seconds_are_counted_by_row_and_in_whole_steps():
    rows = torch.tensor([ids("BOS TimeShift_100" + 3 * " TimeShift_10"), ids("BOS TimeShift_1 TimeShift_29 PAD PAD")])
    assert MaxSeconds(TOKENIZER, 0.3, 2)(rows, None).tolist() == [True, False]
    assert MaxSeconds(TOKENIZER, 0.3, 1)(rows, None).tolist() == [True, True]
    assert MaxSeconds(TOKENIZER, 0.31, 2)(rows, None).tolist() == [False, False]
    assert MaxSeconds(TOKENIZER, 0.3, 2)(rows[:, :2], None).tolist() == [False, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_polyphony": 0}, r"max_polyphony \(0\)"),
        ({"max_note_seconds": 0.001}, r"max_note_seconds \(0.001\)"),
        ({"max_rest_seconds": 0}, r"max_rest_seconds \(0\)"),
        ({"pitch_range": (60, 50)}, r"pitch_range \(60, 50\)"),
        ({"pitch_range": (0, 128)}, r"pitch_range \(0, 128\)"),
    ],
)
def test_an_impossible_option_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MusicGrammar(TOKENIZER, **options)


def test_another_encoding_is_refused(monkeypatch):
    vocabulary = {token: i for token, i in TOKENIZER.get_vocab().items() if token != "NoteOff_64"}
    monkeypatch.setattr(MusicTxTokenizer, "get_vocab", lambda self: vocabulary)
    with pytest.raises(ValueError, match="127 NoteOff tokens"):
        MusicGrammar(TOKENIZER)
