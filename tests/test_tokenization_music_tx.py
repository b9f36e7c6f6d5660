"""The tokenizer as a user of Transformers and of MidiTok meets it."""

import copy
import pickle
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from clean_process import run_clean
from datasets.fingerprint import Hasher
from miditok import REMI
from symusic import ControlChange, Note, Score, Tempo, Track
from transformers import AutoTokenizer, DataCollatorForLanguageModeling, TextGenerationPipeline

from modeling_music_tx import MusicTxConfig, MusicTxForCausalLM
from tokenization import MusicTxTokenizer, Performance

TOKENIZER = MusicTxTokenizer()
BROKEN = {
    "empty": "not a MIDI file",
    "text": "not a MIDI file",
    "truncated": "a broken MIDI file: cut off",
    "bytes stripped": "a broken MIDI file: ",
    "no tracks": "no notes",
    "no time": "0 ticks per quarter",
    "no notes": "no notes",
    "only drums": "only drums",
}


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def piece(make_score):
    """Return the ids of a piece, without BOS."""
    return TOKENIZER.encode(make_score(seed=2), add_special_tokens=False)


def test_the_vocabulary_is_the_papers_after_pad_bos_and_eos():
    vocabulary = TOKENIZER.get_vocab()
    assert list(vocabulary.values()) == list(range(391))
    assert len(TOKENIZER) == TOKENIZER.vocab_size == 391
    assert [TOKENIZER.pad_token_id, TOKENIZER.bos_token_id, TOKENIZER.eos_token_id] == [0, 1, 2]
    for token, id_ in {
        "NoteOn_0": 3, "NoteOn_127": 130, "NoteOff_0": 131, "NoteOff_127": 258,
        "TimeShift_1": 259, "TimeShift_100": 358, "Velocity_2": 359, "Velocity_6": 360, "Velocity_126": 390,
    }.items():  # fmt: skip
        assert vocabulary[token] == id_
        assert TOKENIZER.convert_tokens_to_ids(token) == id_
        assert TOKENIZER.convert_ids_to_tokens(id_) == token


def test_a_path_the_bytes_and_the_score_give_the_same_ids(midi_folder):
    path = midi_folder / "one.mid"
    ids = TOKENIZER(path)["input_ids"]
    assert TOKENIZER(str(path))["input_ids"] == ids
    assert TOKENIZER(path.read_bytes())["input_ids"] == ids
    assert TOKENIZER(Score(path))["input_ids"] == ids


def test_a_score_in_quarters_or_seconds_is_read_too(make_score):
    ids = TOKENIZER.encode(make_score(seed=2))
    assert TOKENIZER.encode(make_score(seed=2).to("quarter")) == ids
    assert len(TOKENIZER.encode(make_score(seed=2).to("second"))) == pytest.approx(len(ids), abs=3)


def test_a_piece_begins_with_bos_and_has_no_eos(make_score, piece):
    assert TOKENIZER(make_score(seed=2))["input_ids"] == [1, *piece]
    assert TOKENIZER(make_score(seed=2), add_special_tokens=False)["input_ids"] == piece
    assert 2 not in piece


def test_the_papers_example_is_written_as_in_the_paper():
    # A C major arpeggio with the sustain pedal down, then an F: Huang et al., appendix A.2, in ticks of 10 ms.
    score = Score(50)
    score.tempos.append(Tempo(0, 120))
    track = Track(program=0)
    for start, pitch in ((0, 60), (50, 64), (100, 67)):
        track.notes.append(Note(start, 50, pitch, 80))
    track.notes.append(Note(250, 50, 65, 100))
    track.controls.extend([ControlChange(0, 64, 127), ControlChange(200, 64, 0)])
    score.tracks.append(track)
    assert TOKENIZER.decode(TOKENIZER(score)["input_ids"]) == (
        "BOS_None Velocity_78 NoteOn_60 TimeShift_50 NoteOn_64 TimeShift_50 NoteOn_67 TimeShift_100 NoteOff_60 "
        "NoteOff_64 NoteOff_67 TimeShift_50 Velocity_98 NoteOn_65 TimeShift_50 NoteOff_65"
    )


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_is_padded_truncated_and_becomes_tensors(make_score, side):
    short, long = make_score(seed=1, seconds=1.0), make_score(seed=2, seconds=20.0)
    ids = TOKENIZER(short)["input_ids"]
    batch = TOKENIZER(
        [short, long],
        padding=True,
        padding_side=side,
        truncation=True,
        max_length=len(ids) + 5,
        return_tensors="pt",
        return_special_tokens_mask=True,
    )
    pad = slice(0, 5) if side == "left" else slice(len(ids), len(ids) + 5)
    music = slice(5, None) if side == "left" else slice(0, len(ids))
    assert batch["input_ids"].shape == (2, len(ids) + 5)
    assert batch["input_ids"][0, music].tolist() == ids
    assert batch["input_ids"][0, pad].tolist() == [0] * 5
    assert batch["attention_mask"].sum(1).tolist() == [len(ids), len(ids) + 5]
    assert batch["attention_mask"][0, pad].tolist() == [0] * 5
    assert batch["input_ids"][1].tolist() == TOKENIZER(long)["input_ids"][: len(ids) + 5]
    assert batch["special_tokens_mask"].sum(1).tolist() == [6, 1]


def test_padding_is_on_the_left_unless_asked_otherwise():
    assert TOKENIZER([[5, 6, 7], [5]], padding=True)["input_ids"] == [[1, 5, 6, 7], [0, 0, 1, 5]]


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor], ids=["list", "array", "tensor"])
def test_ids_pass_through(kind):
    assert TOKENIZER(kind([5, 6, 7]))["input_ids"] == [1, 5, 6, 7]
    assert TOKENIZER([kind([5, 6, 7]), kind([8])])["input_ids"] == [[1, 5, 6, 7], [1, 8]]
    assert TOKENIZER(kind([[5, 6], [7, 8]]))["input_ids"] == [[1, 5, 6], [1, 7, 8]]


def test_a_score_comes_back_as_the_same_ids(make_score, tmp_path):
    for seed in range(5):
        ids = TOKENIZER.encode(make_score(seed))
        score = TOKENIZER.to_score(ids)
        assert TOKENIZER.encode(score) == ids
        score.dump_midi(tmp_path / "again.mid")
        assert TOKENIZER.encode(tmp_path / "again.mid") == ids


@pytest.mark.parametrize("seed", range(10))
def test_any_ids_whatever_become_a_score(seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(-20, 420, 500)
    score = TOKENIZER.to_score(ids)
    assert score.note_num() == np.count_nonzero((ids >= 3) & (ids <= 130))
    assert score.ticks_per_quarter == 500
    assert [tempo.qpm for tempo in score.tempos] == [120]
    again = TOKENIZER.encode(score)
    assert TOKENIZER.encode(Score.from_midi(score.dumps_midi())) == again


@pytest.mark.parametrize(
    "ids", [[], [0], [1, 2], [2**70, -(2**70)], np.array([], dtype=np.uint16), torch.tensor([1])], ids=str
)
def test_ids_without_music_become_an_empty_score(ids):
    assert TOKENIZER.to_score(ids).note_num() == 0


def test_several_sequences_at_once_are_no_score():
    with pytest.raises(ValueError, match="one sequence at a time"):
        TOKENIZER.to_score([[5, 6], [7, 8]])


def test_token_seconds_tell_how_long_a_piece_is(make_score):
    seconds = TOKENIZER.token_seconds
    assert seconds.shape == (391,)
    assert seconds[259] == 0.01
    assert seconds[358] == 1.0
    assert np.count_nonzero(seconds) == 100
    ids = TOKENIZER.encode(make_score(seed=4))
    assert seconds[ids].sum() == pytest.approx(TOKENIZER.to_score(ids).end() / 1000)


def test_augmentation_leaves_pad_bos_and_eos_at_the_ends(piece):
    ids = np.array([0, 0, 1, *piece, 2, 0], dtype=np.uint16)
    augmented = TOKENIZER.augment(ids, semitones=2, stretch=1.05)
    assert augmented.dtype == np.uint16
    assert augmented[:3].tolist() == [0, 0, 1]
    assert augmented[-2:].tolist() == [2, 0]
    before, after = TOKENIZER.to_score(ids), TOKENIZER.to_score(augmented)
    assert [note.pitch + 2 for note in before.tracks[0].notes] == [note.pitch for note in after.tracks[0].notes]
    assert after.end() == pytest.approx(1.05 * before.end(), abs=5)


def test_augmentation_by_nothing_changes_nothing(piece):
    for ids in ([1, *piece, 2], piece, piece[7:90], [0, 1], []):
        assert TOKENIZER.augment(ids).tolist() == ids


def test_augmentation_of_two_pieces_at_once_is_refused(piece):
    with pytest.raises(ValueError, match="more than one piece"):
        TOKENIZER.augment([1, *piece, 2, 1, *piece, 2])


@pytest.mark.parametrize("flaw", BROKEN)
def test_a_broken_file_is_named_with_what_is_wrong(broken_midis, tmp_path, flaw):
    path = tmp_path / "broken.mid"
    path.write_bytes(broken_midis[flaw])
    with pytest.raises(ValueError, match=rf"broken\.mid: .*{BROKEN[flaw]}"):
        TOKENIZER(path)
    with pytest.raises(ValueError, match=BROKEN[flaw]):
        TOKENIZER(broken_midis[flaw])


def test_damaged_files_are_refused_or_give_sound_music(make_score):
    rng = np.random.default_rng(0)
    whole = np.frombuffer(make_score(seed=9, seconds=20.0, tempo_changes=True).dumps_midi(), dtype=np.uint8)
    read = 0
    for _ in range(300):
        damaged = whole.copy()
        damaged[rng.integers(22, len(damaged), rng.integers(1, 4))] &= rng.integers(0, 256, dtype=np.uint8)
        try:
            ids = TOKENIZER.encode(damaged.tobytes())
        except ValueError:
            continue
        read += 1
        assert TOKENIZER.encode(TOKENIZER.to_score(ids)) == ids
    assert 50 < read < 300


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"no such piece\.mid"):
        TOKENIZER("no such piece.mid")


@pytest.mark.parametrize(
    ("music", "message"),
    [
        (3.5, "float is no music"),
        (None, "NoneType is no music"),
        ([], "empty list"),
        ("", "empty string"),
        ([5, 6.5], "int is no music"),
        ({"path": "one.mid"}, "dict is no music"),
    ],
    ids=str,
)
def test_what_is_no_music_is_refused(music, message):
    with pytest.raises((TypeError, ValueError), match=message):
        TOKENIZER.encode(music)


def test_pairs_of_pieces_are_refused():
    with pytest.raises(ValueError, match="no pairs"):
        TOKENIZER([5, 6], [7, 8])


def test_an_unknown_token_and_an_unknown_id_are_named():
    with pytest.raises(ValueError, match="'NoteOn_128' is no token"):
        TOKENIZER.convert_tokens_to_ids("NoteOn_128")
    with pytest.raises(ValueError, match="391 is no id"):
        TOKENIZER.convert_ids_to_tokens(391)


@pytest.mark.parametrize("wrong", [391, -1, 2**70])
def test_ids_outside_the_vocabulary_are_refused_when_encoded_and_decoded(wrong):
    for call in (TOKENIZER, TOKENIZER.decode):
        with pytest.raises(ValueError, match=f"{wrong} is no id of this vocabulary; its ids are 0 to 390"):
            call([1, wrong, 5])
    with pytest.raises(ValueError, match="is no id"):
        TOKENIZER([[5], np.array([wrong], dtype=object)])
    # Only a score leaves them out, for a model with a larger vocabulary may generate them.
    assert TOKENIZER.to_score([63, wrong, 308]) == TOKENIZER.to_score([63, 308])


def test_text_becomes_tokens_and_tokens_become_text(piece):
    text = TOKENIZER.decode([1, *piece])
    assert text.startswith("BOS_None Velocity_")
    assert TOKENIZER.convert_tokens_to_ids(TOKENIZER.tokenize(text)) == [1, *piece]
    assert TOKENIZER.decode([1, *piece], skip_special_tokens=True) == text.removeprefix("BOS_None ")


def test_text_made_of_tokens_is_encoded_as_text(piece):
    ids = [1, *piece]
    assert TOKENIZER("NoteOn_60 TimeShift_50 NoteOff_60")["input_ids"] == [1, 63, 308, 191]
    # BOS is added where the text has none.
    assert TOKENIZER(TOKENIZER.decode(ids))["input_ids"] == ids
    assert TOKENIZER(TOKENIZER.decode(piece))["input_ids"] == ids
    assert TOKENIZER(TOKENIZER.decode(ids), add_special_tokens=False)["input_ids"] == ids
    assert TOKENIZER(TOKENIZER.decode(piece), add_special_tokens=False)["input_ids"] == piece
    # In batches, with what a trainer appends to a text, and as words.
    batch = TOKENIZER(["NoteOn_60EOS_None", "BOS_None NoteOn_60NoteOn_64", "NoteOn_6"], padding=True)
    assert batch["input_ids"] == [[1, 63, 2], [1, 63, 67], [0, 1, 9]]
    assert TOKENIZER(["NoteOn_60", "NoteOff_60"], is_split_into_words=True)["input_ids"] == [1, 63, 191]
    assert TOKENIZER([["NoteOn_60"], ["NoteOn_61"]], is_split_into_words=True)["input_ids"] == [[1, 63], [1, 64]]


def test_the_chat_template_of_a_user_makes_text_of_messages():
    tokenizer = MusicTxTokenizer(chat_template="{% for m in messages %}{{ m['content'] }} {% endfor %}")
    messages = [{"role": "user", "content": "NoteOn_60"}, {"role": "assistant", "content": "NoteOff_60"}]
    assert tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"] in ([1, 63, 191], [63, 191])


def test_a_string_that_is_not_all_tokens_is_a_path(midi_folder, monkeypatch):
    ids = TOKENIZER.encode(midi_folder / "one.mid")
    monkeypatch.chdir(midi_folder)
    assert TOKENIZER.encode("one.mid") == ids
    assert TOKENIZER.tokenize("one.mid") == TOKENIZER.convert_ids_to_tokens(ids[1:])
    # Of a file whose name is a token the path object is the path.
    (midi_folder / "one.mid").rename("NoteOn_60")
    assert TOKENIZER.encode("NoteOn_60") == [1, 63]
    assert TOKENIZER.encode(Path("NoteOn_60")) == ids


def test_a_mistake_in_a_text_is_named():
    with pytest.raises(ValueError, match="'TimeShift_500' is no token"):
        TOKENIZER("NoteOn_60 TimeShift_500 NoteOff_60")
    with pytest.raises(ValueError, match="'NoteOff_128' is no token"):
        TOKENIZER("NoteOn_60 NoteOff_128 " + "NoteOn_60 " * 5000)


def test_text_generation_takes_tokens_and_names_the_pipeline_for_files(midi_folder):
    config = MusicTxConfig(vocab_size=391, hidden_size=16, num_hidden_layers=1, num_attention_heads=1)
    text = TextGenerationPipeline(model=MusicTxForCausalLM(config), tokenizer=TOKENIZER, device="cpu")
    (made,) = text("Velocity_62 NoteOn_60", max_new_tokens=4)
    assert made["generated_text"].startswith("Velocity_62 NoteOn_60")
    assert len(TOKENIZER.encode(made["generated_text"])) == 7
    with pytest.raises(ValueError, match="midi-generation"):
        text(str(midi_folder / "one.mid"), max_new_tokens=4)


def test_generation_stops_at_strings_of_tokens():
    torch.manual_seed(0)
    config = MusicTxConfig(vocab_size=391, hidden_size=16, num_hidden_layers=1, num_attention_heads=1)
    model = MusicTxForCausalLM(config)
    free = model.generate(torch.tensor([[1]]), max_new_tokens=20, do_sample=False, eos_token_id=None)[0].tolist()
    stop = TOKENIZER.decode(free[4:6])
    made = model.generate(
        torch.tensor([[1]]), max_new_tokens=20, do_sample=False, stop_strings=[stop], tokenizer=TOKENIZER
    )[0].tolist()
    assert made == free[: len(made)]
    assert TOKENIZER.decode(made).endswith(stop)
    assert len(made) <= 6


def test_what_is_saved_is_loaded_and_saved_again_byte_for_byte(tmp_path, make_score):
    TOKENIZER.save_pretrained(tmp_path / "first")
    code = {f"{name}.py" for name in ("chorales", "encodings", "performance", "performance_encoding")}
    code |= {f"{name}.py" for name in ("midi_reader", "single_stream", "token_expansion", "tokenization_music_tx")}
    code |= {f"{name}.py" for name in ("forgotten_keys", "grammar", "music_generation", "pipeline_music_tx")}
    code |= {f"{name}.py" for name in ("control_feedback", "controls", "infill_grammar", "infilling", "repetition")}
    assert set(files_of(tmp_path / "first")) == {"miditok.json", "tokenizer_config.json", *code}
    for load in (AutoTokenizer, MusicTxTokenizer):
        loaded = load.from_pretrained(tmp_path / "first")
        assert type(loaded) is MusicTxTokenizer
        assert loaded.encode(make_score()) == TOKENIZER.encode(make_score())
        loaded.save_pretrained(tmp_path / load.__name__)
        assert files_of(tmp_path / load.__name__) == files_of(tmp_path / "first")


def test_the_saved_code_works_where_this_package_is_not(tmp_path, make_score):
    make_score().dump_midi(tmp_path / "piece.mid")
    remi = MusicTxTokenizer.from_miditok(REMI()).train_new_from_iterator([make_score()], 400)
    for name, tokenizer in (("paper", TOKENIZER), ("remi", remi)):
        tokenizer.save_pretrained(tmp_path / "saved" / name)
    script = """
from transformers import AutoTokenizer
for name in ("paper", "remi"):
    tokenizer = AutoTokenizer.from_pretrained(f"saved/{name}", trust_remote_code=True)
    tokenizer.save_pretrained(f"again/{name}")
    print(*tokenizer.encode("piece.mid"))
"""
    process = run_clean(script, tmp_path)
    assert process.returncode == 0, process.stderr
    for line, name, tokenizer in zip(process.stdout.splitlines(), ("paper", "remi"), (TOKENIZER, remi), strict=True):
        assert [int(id_) for id_ in line.split()] == tokenizer.encode(tmp_path / "piece.mid")
        assert files_of(tmp_path / "again" / name) == files_of(tmp_path / "saved" / name)


def test_added_tokens_are_saved_and_make_no_sound(tmp_path, piece):
    tokenizer = MusicTxTokenizer()
    assert tokenizer.add_tokens(["Composer_Bach"]) == 1
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert len(loaded) == 392
    assert loaded.convert_tokens_to_ids("Composer_Bach") == 391
    assert loaded.token_seconds.tolist() == [*TOKENIZER.token_seconds, 0]
    assert loaded.to_score([391, *piece]) == TOKENIZER.to_score(piece)


def test_copies_and_pickles_encode_alike(make_score):
    ids = TOKENIZER.encode(make_score())
    assert copy.deepcopy(TOKENIZER).encode(make_score()) == ids
    assert pickle.loads(pickle.dumps(TOKENIZER)).encode(make_score()) == ids


def test_datasets_map_it_over_files_in_processes_and_know_it_again(midi_folder):
    paths = [str(path) for path in sorted(midi_folder.rglob("*.mid"))]
    pieces = datasets.Dataset.from_dict({"path": paths})
    batches = pieces.map(
        lambda batch: TOKENIZER(batch["path"], truncation=True, max_length=50), batched=True, num_proc=2
    )
    assert batches["input_ids"] == [TOKENIZER.encode(path)[:50] for path in paths]
    # By this a second run finds what the first one has made.
    assert Hasher.hash(TOKENIZER) == Hasher.hash(MusicTxTokenizer()) == Hasher.hash(copy.deepcopy(TOKENIZER))


def test_the_collator_of_transformers_makes_batches_of_its_pieces(make_score):
    pieces = [TOKENIZER(make_score(seed, seconds=1.0 + seed)) for seed in range(3)]
    batch = DataCollatorForLanguageModeling(TOKENIZER, mlm=False)(pieces)
    longest = max(len(piece["input_ids"]) for piece in pieces)
    assert batch["input_ids"].shape == (3, longest)
    assert (batch["labels"] == -100).sum() == sum(longest - len(piece["input_ids"]) for piece in pieces)


def test_a_long_piece_overflows_into_windows_if_asked_to(piece):
    encoded = TOKENIZER(piece, truncation=True, max_length=50, stride=10, return_overflowing_tokens=True)
    assert encoded["input_ids"] == [1, *piece[:49]]
    assert encoded["overflowing_tokens"] == piece[39:]


def test_miditok_encodes_decodes_and_finds_no_errors(midi_folder):
    performance = Performance()
    encoded = performance(midi_folder / "one.mid")
    assert encoded.ids == TOKENIZER.encode(midi_folder / "one.mid", add_special_tokens=False)
    assert [performance[id_] for id_ in encoded.ids] == encoded.tokens
    assert performance.tokens_errors(encoded) == 0
    assert performance.tokens_errors(["NoteOn_60", "NoteOff_60", "TimeShift_5"]) > 0
    assert performance(performance.decode(encoded)).ids == encoded.ids
    assert performance(performance.decode(np.array(encoded.ids))).ids == encoded.ids


def test_miditok_saves_and_loads_the_encoding(tmp_path):
    performance = Performance()
    performance.save(tmp_path / "miditok.json")
    assert Performance(params=tmp_path / "miditok.json") == performance
    assert Performance.from_pretrained(tmp_path, filename="miditok.json") == performance


def test_miditok_trains_a_vocabulary_on_the_encoding(midi_folder, tmp_path):
    performance, path = Performance(), midi_folder / "two.midi"
    ids = performance(path).ids
    performance.train(vocab_size=480, model="BPE", files_paths=[path])
    performance.save(tmp_path / "trained.json")
    trained = Performance(params=tmp_path / "trained.json")
    assert len(trained) == 480
    assert len(trained(path).ids) < len(ids)
    assert Performance()(trained.decode(trained(path))).ids == ids
    assert MusicTxTokenizer(tmp_path / "trained.json").encode(path) == [1, *trained(path).ids]


def test_a_score_for_an_instrument_without_notes_beside_the_piano_changes_nothing(make_score):
    score = make_score()
    ids = TOKENIZER.encode(score)
    score.tracks.append(Track(program=52))
    assert TOKENIZER.encode(score) == ids


def test_a_pedal_on_a_track_of_its_own_holds_the_notes_of_its_channel():
    header = bytes.fromhex("4d546864 00000006 0001 0002 01e0")
    notes = bytes.fromhex("00903c40 8360803c00 00ff2f00")
    pedal = bytes.fromhex("00b0407f 8f00b04000 00ff2f00")
    midi = header + b"".join(b"MTrk" + len(track).to_bytes(4, "big") + track for track in (notes, pedal))
    (note,) = TOKENIZER.to_score(TOKENIZER.encode(midi)).to("second").tracks[0].notes
    assert (note.time, note.duration) == (0, 2)
