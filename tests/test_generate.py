"""`generate.py` writes files for each sample, and ends with one line and exit code 2 after a mistake of the user."""

import hashlib
import inspect
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import types
from importlib.metadata import version
from pathlib import Path

import mido
import numpy as np
import pytest
import torch
from symusic import Note, Score, Track
from tiny_models import save_model

import generate
from evaluation.metrics import describe, score_to_arrays
from evaluation.rendering import find_soundfont, key_name
from modeling_music_tx import MusicTxForCausalLM
from tokenization import MusicTxTokenizer, music_generation

ROOT = Path(__file__).parents[1]
WINDOW = 64


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A model that has learned nothing, with its tokenizer."""
    return save_model(tmp_path_factory.mktemp("model"), MusicTxTokenizer(), sliding_window=WINDOW)


@pytest.fixture
def run(model_folder, tmp_path, monkeypatch):
    """Runs generate.py with the tiny model, for a few seconds of music, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words, seed=1, seconds=2):
        return generate.main(
            ["--model", str(model_folder), "--seed", str(seed), "--seconds", str(seconds), *map(str, words)]
        )

    return run


@pytest.fixture
def no_sound(monkeypatch):
    """A machine without any SoundFont: rendering is tested elsewhere, and silence is quicker."""
    monkeypatch.setattr("evaluation.rendering.find_soundfont", lambda explicit: None)


@pytest.fixture
def prompt(make_score, tmp_path):
    """A MIDI file of twenty seconds."""
    path = tmp_path / "prompt.mid"
    make_score(seed=3, seconds=20).dump_midi(path)
    return path


def files(folder):
    """Everything under a folder, hidden files included, by path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def notes_of(path):
    """The notes of a file as a list of (start, end, pitch, velocity), times in hundredths."""
    return [
        (round(100 * start), round(100 * end), pitch, velocity)
        for start, end, pitch, velocity in zip(*score_to_arrays(Score(path)), strict=True)
    ]


def texts_of(path):
    """The text events of a MIDI file."""
    return [message.text for message in mido.MidiFile(path).tracks[0] if message.type == "text"]


def test_a_sample_is_a_midi_file_its_record_sound_and_picture_and_nothing_else_is_left(run, tmp_path, capsys):
    pytest.importorskip("midirenderer")
    if find_soundfont() is None:
        pytest.skip("there is no SoundFont on this machine")
    run()
    written = files(tmp_path)
    assert set(written) == {f"samples/sample-1-1.{kind}" for kind in ("mid", "json", "wav", "png")}
    assert written["samples/sample-1-1.mid"].startswith(b"MThd")
    assert written["samples/sample-1-1.wav"].startswith(b"RIFF")
    assert written["samples/sample-1-1.png"].startswith(b"\x89PNG")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "samples/sample-1-1{.mid,.json,.png,.wav}"
    assert "tokens/s" in printed[-1]
    assert "seconds of music per second" in printed[-1]


def test_a_progress_bar_is_drawn_on_a_terminal_alone(run, capsys, monkeypatch):
    for is_terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda is_terminal=is_terminal: is_terminal, raising=False)
        run("--formats", "--overwrite", seconds=30)  # long enough for a bar
        assert ("s of music" in capsys.readouterr().err) is is_terminal


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_music(run, tmp_path):
    for folder, seed in (("one", 7), ("two", 7), ("three", 8)):
        run("--output_dir", folder, "--num_samples", 2, seed=seed)
    one, two, three = (list(files(tmp_path / folder).values()) for folder in ("one", "two", "three"))
    assert one == two
    assert len(one) >= 6
    assert not set(one) & set(three)


@pytest.mark.usefixtures("no_sound")
def test_the_record_says_how_to_make_the_same_bytes_again(run, prompt, model_folder, tmp_path, capsys):
    run("--prompt", prompt, "--num_samples", 2, "--pitch_range", 40, 90, "--formats", "svg", "--output_dir", "one")
    text = (tmp_path / "one" / "sample-1-2.json").read_text()
    record = json.loads(text)
    assert record["sample"] == 2
    assert record["seed"] == 1
    assert record["versions"]["torch"] == version("torch")
    weights = (model_folder / "model.safetensors").read_bytes()
    assert record["weights"] == {"model.safetensors": hashlib.sha256(weights).hexdigest()}
    assert record["prompt"] == {"prompt.mid": hashlib.sha256(prompt.read_bytes()).hexdigest()}
    assert record["interrupted"] is False
    # The MIDI file holds the same record, in text events.
    metadata = dict(text.split(": ", 1) for text in texts_of(tmp_path / "one" / "sample-1-2.mid"))
    assert metadata["command"] == record["command"]
    assert {name: json.loads(value) for name, value in metadata.items() if name != "command"} == {
        name: value for name, value in record.items() if name != "command"
    }

    assert record["command"].startswith("python generate.py ")
    generate.main([*shlex.split(record["command"])[2:], "--output_dir", "two"])
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_text_events_of_every_length_are_read_back_by_another_library(tmp_path, make_score):
    texts = ["", "a", "b" * 127, "c" * 128, "d" * 16_383, "Žofie"]
    midi = make_score().dumps_midi()
    (tmp_path / "plain.mid").write_bytes(midi)
    (tmp_path / "with_texts.mid").write_bytes(generate.with_texts(midi, texts))
    # MIDI defines no text encoding; mido decodes Latin-1.
    assert [text.encode("latin-1").decode() for text in texts_of(tmp_path / "with_texts.mid")] == texts
    assert notes_of(tmp_path / "with_texts.mid") == notes_of(tmp_path / "plain.mid")


@pytest.mark.usefixtures("no_sound")
def test_without_a_seed_every_run_is_new(model_folder, tmp_path):
    for _ in range(2):
        generate.main(["--model", str(model_folder), "--seconds", "1", "--output_dir", str(tmp_path)])
    assert len({path.read_bytes() for path in tmp_path.glob("*.mid")}) == 2


@pytest.mark.usefixtures("no_sound")
def test_the_samples_of_one_batch_differ_and_last_as_long_as_asked_for(run, tmp_path):
    run("--num_samples", 3, seconds=3)
    paths = sorted(tmp_path.glob("samples/*.mid"))
    assert [path.name for path in paths] == ["sample-1-1.mid", "sample-1-2.mid", "sample-1-3.mid"]
    assert len({path.read_bytes() for path in paths}) == 3
    for path in paths:
        # The last step in time may lead up to a second too far; notes may end before it, and begin after the first.
        assert 1.5 < Score(path).to("second").end() < 4


@pytest.mark.usefixtures("no_sound")
def test_a_prompt_is_played_first_and_then_continued(run, prompt, tmp_path):
    run("--prompt", prompt, "--prompt_seconds", 5)
    tokenizer = MusicTxTokenizer()
    tokenizer.to_score(tokenizer.encode(prompt)).dump_midi(tmp_path / "whole.mid")

    whole, made = notes_of(tmp_path / "whole.mid"), notes_of(tmp_path / "samples" / "sample-1-1.mid")
    # Notes that ended within the prompt are unchanged; notes that still sounded may end later.
    assert [note for note in whole if note[1] <= 500] == [note for note in made if note in whole and note[1] <= 500]
    assert [note[0::2] for note in made if note[0] < 480] == [note[0::2] for note in whole if note[0] < 480]
    assert 6 < describe(Score(tmp_path / "samples" / "sample-1-1.mid"))["seconds"] < 8
    assert [note[:3] for note in made if note[0] > 500] != [note[:3] for note in whole if note[0] > 500]


@pytest.mark.usefixtures("no_sound")
@pytest.mark.parametrize("prompt_seconds", [0.5, 60])
def test_the_model_sees_the_end_of_a_long_prompt_and_the_file_has_all_of_it(
    run, prompt, tmp_path, monkeypatch, prompt_seconds
):
    seen = []
    original = MusicTxForCausalLM.generate

    def spy(self, input_ids, **options):
        seen.append(input_ids[0].tolist())
        return original(self, input_ids=input_ids, **options)

    monkeypatch.setattr(MusicTxForCausalLM, "generate", spy)
    run("--prompt", prompt, "--prompt_seconds", prompt_seconds)
    tokenizer = MusicTxTokenizer()
    ids = tokenizer.encode(prompt)
    given = len(seen[0])
    if prompt_seconds == 60:
        assert len(ids) > WINDOW
        assert seen[0] == ids[-WINDOW:]
    else:
        assert given < WINDOW
        assert seen[0] == ids[:given]
        elapsed = tokenizer.token_seconds[ids].cumsum()
        assert elapsed[given - 1] <= 0.505 < elapsed[given]
    made = notes_of(tmp_path / "samples" / "sample-1-1.mid")
    assert made[0][0] == 0
    assert made[0][2] == min(note[2] for note in made if note[0] == 0)


@pytest.mark.usefixtures("no_sound")
def test_the_picture_knows_how_long_the_prompt_was(run, prompt, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "evaluation.rendering.piano_roll",
        lambda score, path, prompt_seconds, theme: drawn.append(prompt_seconds) or Path(path).touch(),
    )
    run("--prompt", prompt, "--prompt_seconds", 5)
    run(seed=2)
    assert 4 < drawn[0] <= 5
    assert drawn[1] == 0


@pytest.mark.usefixtures("no_sound")
def test_without_a_soundfont_midi_and_picture_are_written_and_a_line_says_how_to_get_sound(run, tmp_path, capsys):
    run()
    assert set(files(tmp_path)) == {f"samples/sample-1-1.{kind}" for kind in ("mid", "json", "png")}
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0] == "samples/sample-1-1{.mid,.json,.png}"
    (line,) = [line for line in printed.err.splitlines() if line.startswith("No sound")]
    assert "pip install" in line


def test_without_the_synthesizer_midi_and_picture_are_written_too(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "midirenderer", None)
    monkeypatch.setattr("evaluation.rendering.find_soundfont", lambda explicit: Path("any.sf2"))
    run()
    assert set(files(tmp_path)) == {f"samples/sample-1-1.{kind}" for kind in ("mid", "json", "png")}
    assert "midirenderer is not installed" in capsys.readouterr().err


def test_what_is_written_beside_the_midi_file_is_a_choice(run, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "evaluation.rendering.render_audio", lambda score, soundfont: (np.zeros((480, 2), "f4"), 48_000)
    )
    monkeypatch.setattr("evaluation.rendering.find_soundfont", lambda explicit: Path("any.sf2"))
    pytest.importorskip("midirenderer")
    pytest.importorskip("soundfile")
    run("--formats", "flac", "mp3", "svg")
    assert {path.suffix for path in (tmp_path / "samples").iterdir()} == {".mid", ".json", ".flac", ".mp3", ".svg"}
    # Another run's files do not outlive their music.
    run("--formats", "--overwrite", seconds=1)
    assert {path.suffix for path in (tmp_path / "samples").iterdir()} == {".mid", ".json"}


@pytest.mark.usefixtures("no_sound")
def test_files_are_replaced_only_with_overwrite(run, tmp_path, capsys):
    run()
    before = files(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        run("--top_k", 1)
    assert "sample-1-1.mid exists" in capsys.readouterr().err
    assert files(tmp_path) == before
    (tmp_path / "samples" / "sample-1-1.mid").unlink()
    with pytest.raises(SystemExit, match="2"):
        run("--top_k", 1, "--formats")
    run("--top_k", 1, "--overwrite")
    assert files(tmp_path).keys() == before.keys()
    assert files(tmp_path)["samples/sample-1-1.mid"] != before["samples/sample-1-1.mid"]


@pytest.mark.usefixtures("no_sound")
def test_samples_share_one_forward_pass_over_their_prompt(run, prompt, tmp_path, monkeypatch):
    shapes = []
    original = MusicTxForCausalLM.forward

    def spy(self, input_ids, **options):
        shapes.append(tuple(input_ids.shape))
        return original(self, input_ids=input_ids, **options)

    # Transformers reads what the model takes from the signature.
    spy.__signature__ = inspect.signature(original)
    monkeypatch.setattr(MusicTxForCausalLM, "forward", spy)
    run("--prompt", prompt, "--prompt_seconds", 2, "--num_samples", 3, "--top_k", 1, "--formats")
    assert shapes[0][0] == 1
    assert shapes[0][1] > 10
    assert set(shapes[1:]) == {(3, 1)}
    # And go on from it as one alone does.
    run("--prompt", prompt, "--prompt_seconds", 2, "--top_k", 1, "--formats", "--output_dir", "alone")
    alone = notes_of(tmp_path / "alone" / "sample-1-1.mid")
    assert [notes_of(path) for path in sorted(tmp_path.glob("samples/*.mid"))] == [alone] * 3


@pytest.mark.usefixtures("no_sound")
def test_an_ending_lets_the_last_notes_end_by_themselves(run, tmp_path):
    run("--ending", "--max_note_seconds", 1, "--formats")
    notes = notes_of(tmp_path / "samples" / "sample-1-1.mid")
    assert max(start for start, *_ in notes) < 200
    assert 200 <= max(end for _, end, *_ in notes) <= 300


@pytest.mark.usefixtures("no_sound")
def test_the_limits_asked_for_are_kept(run, tmp_path):
    run("--max_polyphony", 2, "--max_note_seconds", 0.5, "--pitch_range", 60, 64, "--formats", seconds=5)
    notes = notes_of(tmp_path / "samples" / "sample-1-1.mid")
    assert {pitch for _, _, pitch, _ in notes} == {60, 61, 62, 63, 64}
    assert max(end - start for start, end, *_ in notes) <= 50
    assert max(sum(start <= now < end for start, end, *_ in notes) for now in range(600)) == 2


@pytest.mark.usefixtures("no_sound")
def test_a_key_held_since_before_what_the_model_sees_is_released(run, prompt, tmp_path):
    score = Score(prompt)
    held = Track()
    held.notes.append(Note(0, 100 * 960, 20, 80))
    score.tracks.append(held)
    score.dump_midi(prompt)
    assert len(MusicTxTokenizer().encode(prompt)) > 2 * WINDOW
    run("--prompt", prompt, "--prompt_seconds", 15, "--formats", seconds=5)
    (end,) = [end for start, end, pitch, _ in notes_of(tmp_path / "samples" / "sample-1-1.mid") if pitch == 20]
    assert 1400 < end < 1550


@pytest.mark.usefixtures("no_sound")
def test_a_model_of_another_encoding_continues_music_and_refuses_what_only_a_grammar_can_do(
    run, prompt, tmp_path, no_sound, capsys
):
    tokenizer = MusicTxTokenizer.from_pretrained(ROOT / "tests" / "saved_tokenizer_0_1" / "remi_bpe")
    folder = save_model(tmp_path / "remi", tokenizer, sliding_window=WINDOW)
    run("--model", folder, "--prompt", prompt, "--num_samples", 2, "--formats")
    first, second = (Score(tmp_path / "samples" / f"sample-1-{number}.mid") for number in (1, 2))
    assert first != second
    assert min(first.note_num(), second.note_num()) > 10
    for words in (["--ending"], ["--max_polyphony", 4], ["--stream"]):
        capsys.readouterr()
        with pytest.raises(SystemExit, match="2"):
            run("--model", folder, *words, "--overwrite")
        assert "Performance encoding" in capsys.readouterr().err


def test_a_prompt_may_be_one_note(run, tmp_path):
    score = Score(480)
    score.tracks.append(Track())
    score.tracks[0].notes.append(Note(0, 480, 60, 80))
    score.dump_midi(tmp_path / "note.mid")
    run("--prompt", "note.mid", "--formats")
    assert notes_of(tmp_path / "samples" / "sample-1-1.mid")[0][2] == 60


@pytest.mark.usefixtures("no_sound")
@pytest.mark.parametrize("prompt_seconds", [None, 2, 15])
def test_the_notes_streamed_are_those_of_the_file(run, prompt, tmp_path, capsys, prompt_seconds):
    given = () if prompt_seconds is None else ("--prompt", prompt, "--prompt_seconds", prompt_seconds)
    run("--stream", "--formats", *given)
    streamed = re.findall(r"^ *([\d.]+) s  (\S+) +velocity +(\d+) +([\d.]+) s$", capsys.readouterr().out, re.MULTILINE)
    written = notes_of(tmp_path / "samples" / "sample-1-1.mid")
    expected = {(start, end - start, key_name(pitch), velocity) for start, end, pitch, velocity in written}
    notes = {(round(100 * float(s)), round(100 * float(d)), name, int(v)) for s, name, v, d in streamed}
    assert len(notes) > 3
    # The file has the notes of the prompt, too.
    assert notes <= expected
    prompt_end = 100 * (prompt_seconds or 0)
    assert {note for note in expected if note[0] > prompt_end} <= notes


@pytest.fixture
def instrument(monkeypatch):
    """A MIDI port; what is sent to it is here."""
    sent = []
    names = {"get_ports": lambda: ["Piano 20:0"], "open_port": lambda number: None, "close_port": lambda: None}
    out = types.SimpleNamespace(send_message=sent.append, **names)
    monkeypatch.setitem(sys.modules, "rtmidi", types.SimpleNamespace(MidiOut=lambda: out))
    return sent


@pytest.mark.usefixtures("no_sound")
def test_a_midi_port_hears_every_note_of_the_file(run, tmp_path, instrument):
    run("--midi_port", "Piano", "--formats", seconds=1)
    strokes = sorted((pitch, velocity) for _, pitch, velocity in instrument[:-1] if velocity)
    assert strokes == sorted(note[2:] for note in notes_of(tmp_path / "samples" / "sample-1-1.mid"))
    assert sum(velocity == 0 for _, _, velocity in instrument[:-1]) == len(strokes)


@pytest.mark.usefixtures("no_sound")
def test_a_model_later_than_the_music_is_reported(run, instrument, monkeypatch, capsys):
    # So strict that every model is late.
    monkeypatch.setattr("evaluation.rendering.LATE_SECONDS", -1000)
    run("--midi_port", "Piano", "--formats", seconds=1)
    assert re.search(r"had to wait for the model: \d+ times, .* s at most", capsys.readouterr().err)


@pytest.mark.usefixtures("no_sound")
def test_ctrl_c_keeps_what_there_is_so_far(run, tmp_path, monkeypatch):
    tokens = 0
    original = generate.Progress.put

    def put(self, ids):
        nonlocal tokens
        original(self, ids)
        tokens += 1
        if tokens == 100:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(generate.Progress, "put", put)
    before = signal.getsignal(signal.SIGINT)
    assert run("--num_samples", 2, seconds=1000) == 130
    assert signal.getsignal(signal.SIGINT) is before
    for number in (1, 2):
        assert notes_of(tmp_path / "samples" / f"sample-1-{number}.mid")
        record = json.loads((tmp_path / "samples" / f"sample-1-{number}.json").read_text())
        assert record["interrupted"] is True
        assert 90 < record["tokens"] <= 101
    assert {path.suffix for path in (tmp_path / "samples").iterdir()} == {".mid", ".json", ".png"}


@pytest.mark.usefixtures("no_sound")
def test_a_second_ctrl_c_stops_at_once_and_leaves_whole_files_or_none(run, tmp_path, monkeypatch):
    def draw(score, path, **options):
        Path(path).write_bytes(b"half a picture")
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("evaluation.rendering.piano_roll", draw)
    # A shell that runs the tests in the background has them ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        run()
    signal.signal(signal.SIGINT, before)
    assert set(files(tmp_path)) == {"samples/sample-1-1.mid", "samples/sample-1-1.json"}


@pytest.mark.usefixtures("no_sound")
def test_a_sample_with_too_many_tokens_is_cut_and_reported(run, capsys, monkeypatch):
    monkeypatch.setattr(music_generation, "SPARE_TOKENS", 0)
    monkeypatch.setattr(music_generation, "TOKENS_PER_SECOND", 2)
    run(seconds=60)
    printed = capsys.readouterr()
    assert "sample-1-1 was cut at 120 tokens" in printed.err
    assert "120 tokens" in printed.out.splitlines()[-1]


def refused(capsys, folder):
    """Return the error message, after checking that it is one line and that no file was written."""
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert set(files(folder)) <= {"prompt.mid", "in_the_way"}
    return line


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--prompt", "absent.mid"], r"prompt cannot be read: .*absent\.mid"),
        (["--prompt", "."], "prompt cannot be read"),
        (["--model", "absent"], "absent holds no model"),
        (["--model", "./absent/model"], "absent/model holds no model"),
        (["--model", "."], r"\. holds no model"),
        (["--soundfont", "absent.sf2"], r"no SoundFont absent\.sf2"),
        (["--output_dir", "in_the_way"], "in_the_way cannot be written to"),
        (["--output_dir", "in_the_way/deeper"], "in_the_way/deeper cannot be written to"),
        (["--seconds", "0"], "--seconds: 0 is not a number from 0.01"),
        (["--seconds", "nan"], "--seconds: nan is not a number"),
        (["--num_samples", "1.5"], "--num_samples: 1.5 is not a whole number from 1"),
        (["--temperature", "-1"], "--temperature"),
        (["--top_p", "1.1"], "--top_p"),
        (["--min_p", "-0.1"], "--min_p"),
        (["--tempreature", "1"], "unrecognized arguments: --tempreature"),
        (["--formats", "doc"], "--formats: invalid choice: 'doc'"),
        (["--pitch_range", "90", "60"], "pitch_range .*90, 60.* lower one first"),
        (["--pitch_range", "60", "128"], "--pitch_range: 128 is not a whole number from 0 to 127"),
        (["--num_samples", "2", "--stream"], "--num_samples 2: --stream and --midi_port need one sample"),
        (["--midi_port", "Organ"], "no MIDI port Organ; there are: Piano 20:0"),
    ],
)
@pytest.mark.usefixtures("instrument")
def test_a_mistake_ends_in_one_line_and_exit_code_2(run, tmp_path, capsys, words, complaint):
    (tmp_path / "in_the_way").touch()
    with pytest.raises(SystemExit) as stop:
        run(*words)
    assert stop.value.code == 2
    assert re.search(complaint, refused(capsys, tmp_path))


def test_without_the_library_for_midi_ports_a_line_says_how_to_get_it(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rtmidi", None)
    with pytest.raises(SystemExit) as stop:
        run("--midi_port", "Piano")
    assert stop.value.code == 2
    assert "pip install python-rtmidi" in refused(capsys, tmp_path)


def test_a_broken_prompt_ends_in_one_line_that_names_it(run, tmp_path, capsys, broken_midis):
    for name, data in broken_midis.items():
        (tmp_path / "prompt.mid").write_bytes(data)
        with pytest.raises(SystemExit) as stop:
            run("--prompt", "prompt.mid")
        assert stop.value.code == 2, name
        assert "prompt.mid" in refused(capsys, tmp_path)


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors", "miditok.json"])
def test_a_damaged_model_ends_in_one_line_that_names_it(run, model_folder, tmp_path, tmp_path_factory, capsys, damage):
    folder = tmp_path_factory.mktemp("damaged")
    for path in model_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / damage).write_bytes((folder / damage).read_bytes()[:40])
    with pytest.raises(SystemExit) as stop:
        run("--model", folder)
    assert stop.value.code == 2
    assert refused(capsys, tmp_path).startswith(f"generate.py: {folder} ")


@pytest.mark.usefixtures("no_sound")
def test_a_model_may_come_from_the_hub(run, model_folder, tmp_path, monkeypatch):
    hub = {"someone/pianist": str(model_folder)}
    monkeypatch.setattr("evaluation.loading.snapshot_download", hub.__getitem__)
    run("--model", "someone/pianist")
    assert "samples/sample-1-1.mid" in files(tmp_path)


def test_a_name_that_neither_the_disk_nor_the_hub_knows_ends_in_one_line(run, tmp_path, capsys, monkeypatch):
    def unreachable(name):
        raise OSError("no such repository\nand many words of advice")

    monkeypatch.setattr("evaluation.loading.snapshot_download", unreachable)
    with pytest.raises(SystemExit) as stop:
        run("--model", "someone/pianist")
    assert stop.value.code == 2
    assert refused(capsys, tmp_path).endswith("cannot be had from the Hub: no such repository")


@pytest.mark.usefixtures("no_sound")
def test_a_file_alone_on_the_command_line_or_from_standard_input_is_the_prompt(run, prompt, tmp_path, monkeypatch):
    run("--prompt", prompt, "--formats", "--output_dir", "one")
    run(prompt, "--formats", "--output_dir", "two")
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=prompt.open("rb")))
    run("-", "--formats", "--output_dir", "three")
    one, two, three = (notes_of(tmp_path / folder / "sample-1-1.mid") for folder in ("one", "two", "three"))
    assert one == two == three


def test_what_a_terminal_would_obey_in_a_name_is_shown_as_an_escape(run, tmp_path, capsys):
    run("--output_dir", "a\x1b[2Jb")
    with pytest.raises(SystemExit):
        run("--prompt", "a\x1b[2Jb.mid")
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    assert r"a\x1b[2Jb/sample" in said.out
    assert r"a\x1b[2Jb.mid" in said.err


def test_two_prompts_are_refused(run, prompt, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(prompt, "--prompt", prompt)
    assert "one prompt" in refused(capsys, tmp_path)


def test_a_missing_prompt_is_reported_before_the_model_is_loaded(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(generate, "load", lambda name: pytest.fail("loaded"))
    with pytest.raises(SystemExit, match="2"):
        run("absent.mid")
    assert "absent.mid" in refused(capsys, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_sound")
def test_the_files_name_the_prompt_without_its_folder(run, prompt, tmp_path):
    folder = tmp_path / "private"
    folder.mkdir()
    prompt.rename(folder / "mine.mid")
    run("--prompt", folder / "mine.mid", "--formats")
    for path in (tmp_path / "samples").iterdir():
        assert b"private" not in path.read_bytes()
        assert b"mine.mid" in path.read_bytes()


@pytest.mark.usefixtures("no_sound")
def test_a_prompt_whose_name_is_not_utf8_is_continued(run, prompt, tmp_path):
    name = os.fsdecode(b"caf\xe9.mid")
    try:
        prompt.rename(tmp_path / name)
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    run(name, "--formats", "--output_dir", os.fsdecode(b"caf\xe9"))
    record = json.loads((tmp_path / os.fsdecode(b"caf\xe9") / "sample-1-1.json").read_text())
    assert list(record["prompt"]) == ["caf\ufffd.mid"]


@pytest.mark.usefixtures("no_sound")
def test_folders_of_killed_runs_are_removed_and_those_in_use_are_not(run, tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    for process in (dead.stdout.strip(), os.getppid()):
        (tmp_path / "samples" / f".samples.unfinished-{process}").mkdir(parents=True)
        (tmp_path / "samples" / f".samples.unfinished-{process}" / "sample.mid").touch()
    run("--formats")
    left = [path.name for path in (tmp_path / "samples").iterdir() if path.is_dir()]
    assert left == [f".samples.unfinished-{os.getppid()}"]


HOLD = "import sys, types; from pathlib import Path; import generate\n"
HOLD += "with generate.unfinished_folder(types.SimpleNamespace(output_dir=Path(sys.argv[1]), seed=1)):\n"
HOLD += "    print('held', flush=True); sys.stdin.read()"


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is locked there")
@pytest.mark.usefixtures("no_sound")
def test_two_runs_with_one_seed_do_not_write_to_one_folder_at_the_same_time(run, tmp_path, capsys):
    command = [sys.executable, "-c", HOLD, tmp_path / "samples"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(SystemExit, match="2"):
            run("--overwrite")
        assert "another run writes samples of seed 1" in capsys.readouterr().err
    run()


def test_a_reader_that_leaves_ends_the_music_without_a_traceback(model_folder, tmp_path):
    words = ["--model", model_folder, "--seconds", "30", "--stream", "--formats", "--output_dir", tmp_path]
    process = subprocess.Popen(
        [sys.executable, ROOT / "generate.py", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert "velocity" in process.stdout.readline()
    process.stdout.close()
    printed = process.stderr.read()
    assert process.wait() == 130
    assert "Error" not in printed
    (record,) = tmp_path.glob("*.json")
    assert json.loads(record.read_text())["interrupted"] is True


@pytest.mark.usefixtures("no_sound")
def test_the_number_of_threads_is_an_option(run):
    before = torch.get_num_threads()
    try:
        run("--threads", 2, "--formats", seconds=0.5)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_importing_does_nothing_and_help_does_not_wait_for_torch():
    code = "import sys, generate; assert not {'torch', 'transformers', 'matplotlib', 'symusic'} & set(sys.modules)"
    quiet = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    help_ = subprocess.run(
        [sys.executable, "-X", "importtime", ROOT / "generate.py", "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert help_.returncode == 0
    assert "--prompt_seconds" in help_.stdout
    assert "torch" not in help_.stderr
