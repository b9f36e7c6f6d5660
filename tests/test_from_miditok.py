"""MidiTok's own tokenizers behind the face of Transformers, with trained vocabularies and without."""

import copy
import functools
import json
import pickle

import numpy as np
import pytest
from miditok import BEAT, MMM, REMI, TSD, CPWord, MIDILike, MuMIDI, Octuple, PerTok, Structured, TokenizerConfig
from symusic import Note, Score, Track
from transformers import AutoTokenizer

from tokenization import MusicGrammar, MusicTxTokenizer, Performance

PLAIN = {
    "Performance": Performance,
    "REMI": REMI,
    "REMI with programs": lambda: REMI(TokenizerConfig(use_programs=True, use_tempos=True)),
    "REMI with PAD alone": lambda: REMI(TokenizerConfig(special_tokens=["PAD"], use_chords=True, use_rests=True)),
    "MIDILike": MIDILike,
    "TSD": TSD,
    "Structured": Structured,
    "PerTok": lambda: PerTok(
        TokenizerConfig(
            beat_res={(0, 4): 8, (4, 12): 4},
            ticks_per_quarter=320,
            use_microtiming=True,
            max_microtiming_shift=0.125,
            num_microtiming_bins=30,
        )
    ),
    "MMM": lambda: MMM(TokenizerConfig(base_tokenizer="TSD")),
    "BEAT": BEAT,
}
# Every encoding as it is and with BPE; Unigram with words that are bars and without; WordPiece, which needs words.
KINDS = [
    *((name, model) for name in PLAIN for model in (None, "BPE")),
    ("Performance", "Unigram"),
    ("REMI", "Unigram"),
    ("REMI", "WordPiece"),
    ("MMM", "WordPiece"),
]
each_kind = pytest.mark.parametrize(
    ("name", "model"), KINDS, ids=[f"{name}-{model}" if model else name for name, model in KINDS]
)


@pytest.fixture(scope="module")
def scores(make_score):
    return [make_score(seed, seconds=6.0, tempo_changes=seed == 1, tracks=1 + seed % 2) for seed in range(3)]


@pytest.fixture(scope="module")
def make(scores):
    """Return the function that makes a tokenizer of a kind, once."""

    @functools.cache
    def make(name, model=None):
        tokenizer = MusicTxTokenizer.from_miditok(PLAIN[name]())
        return tokenizer.train_new_from_iterator(scores, len(tokenizer) + 40, model) if model else tokenizer

    return make


def pitches(score):
    return sorted(note.pitch for track in score.tracks for note in track.notes)


def in_order(score):
    score = score.copy()
    for track in score.tracks:
        track.notes.sort(key=lambda note: (note.time, note.pitch, note.duration, note.velocity))
    return score


@each_kind
def test_it_writes_what_miditok_writes_and_reads_it_back(make, scores, name, model):
    tokenizer = make(name, model)
    # The first score has one track, which MidiTok gives a list of one stream where it makes a stream of each track.
    streams = tokenizer.miditok.encode(in_order(scores[0]))
    (written,) = streams if isinstance(streams, list) else [streams]
    ids = tokenizer.encode(scores[0])
    assert ids == [tokenizer.bos_token_id, *written.ids]
    assert written.are_ids_encoded == bool(model)
    plain = make(name).encode(scores[0])
    assert len(ids) < len(plain) if model else ids == plain
    assert tokenizer.to_score(ids) == make(name).to_score(plain)
    assert tokenizer.to_score(ids) == tokenizer.miditok.decode(streams)


@each_kind
def test_what_is_saved_is_loaded_and_saved_again_byte_for_byte(make, scores, tmp_path, name, model):
    tokenizer = make(name, model)
    tokenizer.save_pretrained(tmp_path / "first")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "first")
    loaded.save_pretrained(tmp_path / "second")
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / n).iterdir()} for n in ("first", "second"))
    assert second == first
    for other in (loaded, copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert other.get_vocab() == tokenizer.get_vocab()
        assert other(scores, padding=True) == tokenizer(scores, padding=True)


@each_kind
def test_any_ids_whatever_become_a_score(make, name, model):
    tokenizer = make(name, model)
    for seed in range(5):
        ids = np.random.default_rng(seed).integers(-5, len(tokenizer) + 5, 200)
        score = tokenizer.to_score(ids)
        assert Score.from_midi(score.dumps_midi()).note_num() == score.note_num()
    for nothing in ([], [tokenizer.pad_token_id, tokenizer.bos_token_id], [10**6]):
        assert tokenizer.to_score(nothing).note_num() == 0


@each_kind
def test_every_id_has_a_token_of_its_own_and_text_becomes_ids_again(make, scores, name, model):
    tokenizer = make(name, model)
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    assert tokenizer.convert_tokens_to_ids(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))) == list(
        range(len(tokenizer))
    )
    ids = tokenizer.encode(scores[0])
    assert tokenizer.convert_tokens_to_ids(tokenizer.tokenize(tokenizer.decode(ids))) == ids


@each_kind
def test_it_pads_truncates_and_marks_special_tokens(make, scores, name, model):
    tokenizer = make(name, model)
    batch = tokenizer(
        [scores[0], tokenizer.encode(scores[1], add_special_tokens=False)[:5]],
        padding=True,
        truncation=True,
        max_length=20,
        return_tensors="np",
        return_special_tokens_mask=True,
    )
    assert batch["input_ids"].shape == (2, 20)
    assert batch["attention_mask"].sum(1).tolist() == [20, 6]
    assert batch["special_tokens_mask"].sum(1).tolist() == [1, 15]
    assert (batch["input_ids"][1, :14] == tokenizer.pad_token_id).all()
    assert batch["input_ids"][:, [0, 14]].flatten().tolist().count(tokenizer.bos_token_id) == 2


@each_kind
def test_augmentation_transposes_any_slice(make, scores, name, model):
    tokenizer = make(name, model)
    ids = tokenizer.encode(scores[0])
    piece = [tokenizer.pad_token_id, *ids, tokenizer.eos_token_id]
    for part in (piece, ids[7:60]):
        assert tokenizer.augment(part).tolist() == part
    if name == "BEAT":
        with pytest.raises(ValueError, match=r"semitones is 2; .* of BEAT is not transposed"):
            tokenizer.augment(piece, 2)
        return
    higher = tokenizer.augment(piece, 2)
    assert higher[[0, 1, -1]].tolist() == [piece[0], piece[1], piece[-1]]
    assert pitches(tokenizer.to_score(higher)) == [pitch + 2 for pitch in pitches(tokenizer.to_score(piece))]
    # A trained vocabulary merges the new tokens in the same way.
    assert tokenizer.augment(higher, -2).tolist() == piece
    with pytest.raises(ValueError, match="semitones is 90"):
        tokenizer.augment(piece, 90)


def test_beats_have_no_tempo_to_stretch_but_seconds_have(make, scores):
    remi, performance = make("REMI", "BPE"), make("Performance", "BPE")
    ids = remi.encode(scores[0])
    assert remi.augment(ids, 0, 1.05).tolist() == ids
    ids = performance.encode(scores[0])
    longer = performance.to_score(performance.augment(ids, 0, 1.05))
    assert longer.end() == pytest.approx(1.05 * performance.to_score(ids).end(), abs=5)


def test_the_seconds_of_the_papers_encoding_are_exact_in_any_vocabulary(make, scores):
    for model in (None, "BPE", "Unigram"):
        tokenizer = make("Performance", model)
        ids = tokenizer.encode(scores[0])
        assert tokenizer.token_seconds.shape == (len(tokenizer),)
        assert tokenizer.token_seconds[ids].sum() == pytest.approx(tokenizer.to_score(ids).end() / 1000)


@pytest.mark.parametrize("name", ["MIDILike", "TSD", "Structured", "PerTok", "REMI", "BEAT"])
def test_the_seconds_of_encodings_in_beats_are_right_to_a_bar(make, scores, name):
    for model in (None, "BPE"):
        tokenizer = make(name, model)
        ids = tokenizer.encode(scores[0])
        score = tokenizer.to_score(ids).to("second")
        last_onset = max(note.time for note in score.tracks[0].notes)
        assert last_onset - 2 <= tokenizer.token_seconds[ids].sum() <= score.end() + 2


def test_tracks_written_one_after_the_other_have_no_seconds_by_the_token(make):
    with pytest.raises(ValueError, match="MMM writes one track after the other"):
        _ = make("MMM").token_seconds


def test_only_single_events_of_the_papers_encoding_have_a_grammar(make):
    assert make("Performance").has_events
    assert not make("Performance", "BPE").has_events
    assert not make("REMI").has_events
    for other in (make("REMI"), make("Performance", "BPE")):
        with pytest.raises(ValueError, match="must be one of the Performance encoding"):
            MusicGrammar(other)


def test_a_learned_token_is_written_as_those_it_stands_for(make):
    assert any(token.count("+") == 1 for token in make("Performance", "BPE").get_vocab())
    assert "▁Bar_None" in {token.split("+")[0] for token in make("REMI", "BPE").get_vocab()}


def test_tokens_may_be_added_to_a_trained_vocabulary(make, scores, tmp_path):
    tokenizer = copy.deepcopy(make("REMI", "BPE"))
    size = len(tokenizer)
    assert tokenizer.add_tokens(["Composer_Bach"]) == 1
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    ids = loaded.encode(scores[0])
    assert loaded.convert_tokens_to_ids("Composer_Bach") == size == len(loaded) - 1
    assert loaded.to_score([size, *ids]) == tokenizer.to_score(ids)


@pytest.mark.parametrize("name", ["REMI", "MIDILike", "MMM", "Performance"])
def test_the_order_in_which_a_score_holds_its_notes_makes_no_difference(make, make_score, name):
    # Releases of symusic read the notes of a chord in different orders.
    score, shuffled = make_score(seed=9), make_score(seed=9)
    shuffled.tracks[0].notes.sort(key=lambda note: note.pitch * 7919 % 1013)
    assert shuffled != score
    assert make(name).encode(shuffled) == make(name).encode(score)


def test_tracks_become_one_piano_only_where_miditok_would_make_a_stream_of_each(make, make_score):
    score = make_score(tracks=2)
    score.tracks[1].program = 40
    score.tracks.append(Track(is_drum=True))
    score.tracks[2].notes.append(Note(0, 100, 38, 90))
    before = score.copy()
    remi, with_programs = make("REMI"), make("REMI with programs")
    assert remi.to_score(remi.encode(score)).note_num() == score.note_num() - 1
    programs = {(track.program, track.is_drum) for track in with_programs.to_score(with_programs.encode(score)).tracks}
    assert programs == {(0, False), (40, False), (0, True)}
    assert score == before


def test_what_cannot_be_written_is_named_with_the_reason(make, broken_midis, make_score):
    tokenizer = make("REMI")
    for flaw, message in {
        "text": "not a MIDI file",
        "truncated": "a broken MIDI file: cut off",
        "no time": "a broken MIDI file: 0 ticks per quarter",
        "no notes": "no notes in it",
        "only drums": "only drums in it",
    }.items():
        with pytest.raises(ValueError, match=f"the MIDI bytes: {message}"):
            tokenizer(broken_midis[flaw])
    whales = Score(480)
    whales.tracks.append(Track())
    whales.tracks[0].notes.append(Note(0, 480, 3, 90))
    with pytest.raises(ValueError, match="the score: no notes in it that REMI can write"):
        tokenizer(whales)
    whales.tracks[0].notes.append(Note(100_000_000, 480, 60, 90))
    with pytest.raises(ValueError, match="hours long; more than 24"):
        tokenizer(whales)


@pytest.mark.parametrize("kind", [Octuple, CPWord, MuMIDI])
def test_several_vocabularies_are_refused(kind, tmp_path):
    with pytest.raises(ValueError, match=f"{kind.__name__} is no encoding of one stream and one vocabulary"):
        MusicTxTokenizer.from_miditok(kind())
    kind().save(tmp_path / "miditok.json")
    with pytest.raises(ValueError, match=f"{kind.__name__} is no encoding of one stream and one vocabulary"):
        MusicTxTokenizer(tmp_path / "miditok.json")


def test_what_would_not_be_saved_is_refused():
    class Mine(REMI):
        pass

    with pytest.raises(ValueError, match="Mine is no encoding"):
        MusicTxTokenizer.from_miditok(Mine())
    remi = REMI()
    remi.add_to_vocab("Composer_Bach")
    with pytest.raises(ValueError, match="MidiTok does not save all of this REMI's tokens"):
        MusicTxTokenizer.from_miditok(remi)


def test_what_is_wrapped_is_a_copy(make_score):
    remi = REMI()
    tokenizer = MusicTxTokenizer.from_miditok(remi, padding_side="right")
    trained = tokenizer.train_new_from_iterator([make_score()], 400)
    assert [remi.is_trained, tokenizer.miditok.is_trained, trained.miditok.is_trained] == [False, False, True]
    assert trained.padding_side == "right"


def test_training_twice_on_the_same_music_gives_the_same_vocabulary(make, midi_folder):
    paths = [midi_folder / "one.mid", (midi_folder / "two.midi").read_bytes()]
    one, two = (make("REMI").train_new_from_iterator(iter(paths), 420) for _ in range(2))
    assert len(one) == 420
    assert one.get_vocab() == two.get_vocab()


@pytest.mark.parametrize(
    ("name", "size", "model", "message"),
    [
        ("REMI", 357, "BPE", r"vocab_size \(357\) must be more than the 357 tokens"),
        ("REMI", 400, "bpe", "model is 'bpe'; known are BPE, Unigram and WordPiece"),
        ("Performance", 400, "WordPiece", "A WordPiece vocabulary needs words"),
    ],
)
def test_a_vocabulary_that_cannot_be_trained_is_refused(make, scores, name, size, model, message):
    with pytest.raises(ValueError, match=message):
        make(name).train_new_from_iterator(scores, size, model)


def test_a_trained_vocabulary_is_not_trained_again(make, scores):
    with pytest.raises(ValueError, match="trained already"):
        make("REMI", "BPE").train_new_from_iterator(scores, 500)


def test_music_that_a_trained_vocabulary_would_lose_is_refused(make, scores):
    # Bars of more than three tokens are unknown words.
    tokenizer = make("REMI").train_new_from_iterator(scores, 400, "WordPiece", max_input_chars_per_word=3)
    with pytest.raises(ValueError, match="the score: it has what this trained vocabulary cannot write"):
        tokenizer(scores[0])


def test_a_description_without_a_known_encoding_is_refused(tmp_path):
    for description in ({"tokenization": "os.system"}, {"tokenization": None}, {}):
        (tmp_path / "miditok.json").write_text(json.dumps(description))
        with pytest.raises(ValueError, match="is no encoding"):
            MusicTxTokenizer(tmp_path / "miditok.json")
