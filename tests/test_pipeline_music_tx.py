"""The pipeline: any form of MIDI in, well-formed MIDI out, also where none of our packages is installed."""

import json

import pytest
from clean_process import run_clean
from miditok import TSD
from symusic import Score
from tiny_models import make_model
from transformers import Trainer, TrainingArguments, pipeline, set_seed

from modeling_music_tx import MusicTxForCausalLM
from tokenization import MusicTxTokenizer
from tokenization.grammar import MusicGrammar
from tokenization.music_generation import piano_logits_processors
from tokenization.pipeline_music_tx import MidiGenerationPipeline

TOKENIZER = MusicTxTokenizer()
WINDOW = 48


@pytest.fixture(scope="module")
def midi():
    """A pipeline around a model that has learned nothing."""
    model = make_model(TOKENIZER, sliding_window=WINDOW)
    return MidiGenerationPipeline(model=model, tokenizer=MusicTxTokenizer(), device="cpu", do_sample=True)


@pytest.fixture
def piece(make_score):
    """A piece of about two seconds that the model sees whole."""
    return TOKENIZER.to_score(TOKENIZER.encode(make_score(3, seconds=2.0))[:WINDOW])


def spans(score, until=float("inf")):
    """The notes of a score that begin before a time, as (start, pitch), in milliseconds."""
    (track,) = score.tracks
    return sorted((note.time, note.pitch) for note in track.notes if note.time < until)


def test_a_path_bytes_and_a_score_are_continued_alike_and_nothing_is_a_beginning_too(midi, piece, tmp_path):
    piece.dump_midi(tmp_path / "piece.mid")
    results = []
    for music in (tmp_path / "piece.mid", str(tmp_path / "piece.mid"), piece.dumps_midi(), piece):
        set_seed(1)
        results.append(midi(music, seconds=2))
    assert all(result == results[0] for result in results)
    end = piece.end()
    assert spans(results[0], end - 1) == spans(piece, end - 1)
    assert end + 1500 < results[0].end() <= end + 3000
    assert 1500 < midi(seconds=2).end() <= 3000


def test_the_music_is_well_formed_and_several_come_at_once(midi, piece):
    grammar = MusicGrammar(TOKENIZER)
    for music in (None, piece):
        scores = midi(music, seconds=2, num_return_sequences=3)
        assert len(scores) == 3
        assert scores[0] != scores[1]
        assert [grammar.violations(TOKENIZER.encode(score)) for score in scores] == [[]] * 3


def test_output_is_a_score_or_bytes_or_new_files(midi, piece, tmp_path):
    forms = []
    for output in ("score", "bytes", tmp_path / "out"):
        set_seed(2)
        forms.append(midi(piece, seconds=1, output=output))
    score, data, path = forms
    assert Score.from_midi(data) == Score(path) == Score.from_midi(score.dumps_midi())
    more = midi(seconds=0.5, output=str(tmp_path / "out"), num_return_sequences=2)
    assert len({path, *more}) == 3
    assert sorted((tmp_path / "out").iterdir()) == sorted([path, *more])


def test_a_list_gives_a_list_in_batches_or_not(midi, piece):
    for options in ({}, {"batch_size": 2}):
        one, alone, other = midi([piece, None, piece], seconds=1, prompt_seconds=1, **options)
        # The longest TimeShift of the piece may have been cut off the second.
        assert spans(one, 350) == spans(other, 350) == spans(piece, 350)
        assert spans(one) != spans(other)
        assert max(score.end() for score in (one, alone, other)) <= 3000


def test_a_prompt_longer_than_the_window_stays_whole_and_its_keys_are_released(midi, make_score):
    ids = TOKENIZER.encode(make_score(4, seconds=8.0))
    # Cut where a key is down that was struck before what the model sees.
    down = set()
    for length, token in enumerate(TOKENIZER.convert_ids_to_tokens(ids), 1):
        kind, _, key = token.partition("_")
        down = down | {key} if kind == "NoteOn" else down - {key}
        seen = TOKENIZER.convert_ids_to_tokens(ids[:length][-WINDOW:])
        if length > 2 * WINDOW and any(f"NoteOn_{key}" not in seen for key in down):
            break
    prompt = TOKENIZER.to_score(ids[:length])
    score = midi(prompt, seconds=3, rules={"max_note_seconds": 1.0})
    end = prompt.end()
    assert spans(score, end - 1) == spans(prompt, end - 1)
    assert all(note.end <= end + 1000 for note in score.tracks[0].notes if note.time < end - 1000)


def test_an_ending_comes_to_rest_near_its_length(midi):
    for score in midi(seconds=2, ending=True, num_return_sequences=4, rules={"max_note_seconds": 0.5}):
        assert all(note.time < 2000 for note in score.tracks[0].notes)
        assert score.end() <= 2500
        assert max(note.duration for note in score.tracks[0].notes) <= 500


def test_a_model_of_another_encoding_continues_music_too_without_rules():
    tokenizer = MusicTxTokenizer.from_miditok(TSD())
    midi = MidiGenerationPipeline(model=make_model(tokenizer), tokenizer=tokenizer, device="cpu", do_sample=True)
    piece = tokenizer.to_score(tokenizer.convert_tokens_to_ids(["Pitch_60", "Velocity_63", "Duration_1.0.8"]))
    assert piano_logits_processors(tokenizer) == []
    set_seed(1)
    continued = midi(piece, seconds=600)  # few random tokens make a note
    assert continued.note_num() > 1
    assert continued.tracks[0].notes[0].pitch == 60
    with pytest.raises(ValueError, match="max_polyphony: only the untrained Performance encoding"):
        midi(piece, seconds=2, rules={"max_polyphony": 2})


def test_options_out_of_range_and_files_that_are_no_music_are_refused(midi, broken_midis):
    with pytest.raises(ValueError, match=r"seconds \(0\)"):
        midi(seconds=0)
    with pytest.raises(ValueError, match="not a MIDI file"):
        midi(broken_midis["text"])


@pytest.mark.parametrize("order", ["model first", "tokenizer first", "Trainer"])
def test_a_folder_saved_in_parts_names_the_pipeline_and_holds_its_code(midi, tmp_path, order):
    model, tokenizer = MusicTxForCausalLM(midi.model.config), MusicTxTokenizer()
    vars(model.config).pop("custom_pipelines", None)
    folder = tmp_path / "saved"
    if order == "Trainer":
        arguments = TrainingArguments(tmp_path / "run", report_to="none", use_cpu=True)
        Trainer(model, arguments, processing_class=tokenizer).save_model(folder)
    else:
        for part in (model, tokenizer) if order == "model first" else (tokenizer, model):
            part.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["custom_pipelines"]["midi-generation"]["impl"] == "pipeline_music_tx.MidiGenerationPipeline"
    assert {path.name for path in folder.iterdir()} >= {"pipeline_music_tx.py", "music_generation.py", "grammar.py"}
    loaded = pipeline("midi-generation", model=str(folder), trust_remote_code=True, do_sample=True)
    assert loaded(seconds=0.5).end() > 0


def test_a_saved_pipeline_works_where_no_package_of_ours_is_installed(midi, piece, tmp_path):
    midi.save_pretrained(tmp_path / "saved")
    piece.dump_midi(tmp_path / "piece.mid")
    script = """
from pathlib import Path
from transformers import pipeline, set_seed
midi = pipeline("midi-generation", model="saved", trust_remote_code=True, do_sample=True)
set_seed(5)
data = midi("piece.mid", seconds=1, output="bytes")
Path("continued.mid").write_bytes(data)
for folder, parts in (("one", (midi.model, midi.tokenizer)), ("other", (midi.tokenizer, midi.model))):
    for part in parts:
        part.save_pretrained(folder)
    set_seed(5)
    resaved = pipeline("midi-generation", model=folder, trust_remote_code=True, do_sample=True)
    assert resaved("piece.mid", seconds=1, output="bytes") == data
midi.save_pretrained("again")
set_seed(5)
again = pipeline(model="again", trust_remote_code=True, do_sample=True)
assert again("piece.mid", seconds=1, output="bytes") == data
"""
    process = run_clean(script, tmp_path)
    assert process.returncode == 0, process.stderr[-2000:]
    set_seed(5)
    assert (tmp_path / "continued.mid").read_bytes() == midi(piece, seconds=1, output="bytes")
    saved, again = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("saved", "again"))
    assert {"grammar.py", "performance.py", "pipeline_music_tx.py", "modeling_music_tx.py"} <= saved.keys()
    assert saved == again


@pytest.mark.parametrize("options", [{"num_beams": 2, "do_sample": False}, {"use_cache": False, "do_sample": True}])
def test_several_samples_come_with_options_that_need_a_cache_of_their_own(midi, piece, options):
    pieces = midi(piece, seconds=1, num_return_sequences=2, **options)
    assert len(pieces) == 2
