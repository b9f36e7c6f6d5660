"""The verb: flags in, three files for each sample out; one line and exit code 2 for a mistake."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from symusic import Score

import generate
from evaluation.metrics import describe, read_notes
from evaluation.rendering import find_soundfont
from modeling_music_tx import MusicTxConfig, MusicTxForCausalLM
from tokenization import MusicTxTokenizer

ROOT = Path(__file__).parents[1]
WINDOW = 64


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A model that has learned nothing, with its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = MusicTxTokenizer()
    torch.manual_seed(0)
    config = MusicTxConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_relative_distance=32,
        sliding_window=WINDOW,
    )
    MusicTxForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def run(model_folder, tmp_path, monkeypatch):
    """Runs the verb with the tiny model, for a few seconds of music, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words, seed=1, seconds=2):
        generate.main(["--model", str(model_folder), "--seed", str(seed), "--seconds", str(seconds), *map(str, words)])

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
        for start, end, pitch, velocity in zip(*read_notes(Score(path)), strict=True)
    ]


def test_a_sample_is_a_midi_file_its_sound_and_its_picture_and_nothing_else_is_left(run, tmp_path, capsys):
    pytest.importorskip("midirenderer")
    if find_soundfont() is None:
        pytest.skip("there is no SoundFont on this machine")
    run()
    written = files(tmp_path)
    assert set(written) == {"samples/sample-1-1.mid", "samples/sample-1-1.wav", "samples/sample-1-1.png"}
    assert written["samples/sample-1-1.mid"].startswith(b"MThd")
    assert written["samples/sample-1-1.wav"].startswith(b"RIFF")
    assert written["samples/sample-1-1.png"].startswith(b"\x89PNG")
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "samples/sample-1-1{.mid,.wav,.png}"
    assert "tokens/s" in said[-1]
    assert "seconds of music per second" in said[-1]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_music(run, tmp_path):
    for folder, seed in (("one", 7), ("two", 7), ("three", 8)):
        run("--output_dir", folder, "--num_samples", 2, seed=seed)
    one, two, three = (list(files(tmp_path / folder).values()) for folder in ("one", "two", "three"))
    assert one == two
    assert len(one) >= 4
    assert not set(one) & set(three)


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
    # What had ended within the prompt is there as it was; what still sounded may end anew.
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
        lambda score, path, prompt_seconds: drawn.append(prompt_seconds) or Path(path).touch(),
    )
    run("--prompt", prompt, "--prompt_seconds", 5)
    run(seed=2)
    assert 4 < drawn[0] <= 5
    assert drawn[1] == 0


@pytest.mark.usefixtures("no_sound")
def test_without_a_soundfont_midi_and_picture_are_written_and_a_line_says_how_to_get_sound(run, tmp_path, capsys):
    run()
    assert set(files(tmp_path)) == {"samples/sample-1-1.mid", "samples/sample-1-1.png"}
    said = capsys.readouterr()
    assert said.out.splitlines()[0] == "samples/sample-1-1{.mid,.png}"
    (line,) = [line for line in said.err.splitlines() if line.startswith("No sound")]
    assert "pip install" in line


def test_without_the_synthesizer_midi_and_picture_are_written_too(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "midirenderer", None)
    monkeypatch.setattr("evaluation.rendering.find_soundfont", lambda explicit: Path("any.sf2"))
    run()
    assert set(files(tmp_path)) == {"samples/sample-1-1.mid", "samples/sample-1-1.png"}
    assert "midirenderer is not installed" in capsys.readouterr().err


@pytest.mark.usefixtures("no_sound")
def test_files_are_replaced_only_with_overwrite(run, tmp_path, capsys):
    run()
    before = files(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        run("--top_k", 1)
    assert "sample-1-1.mid is there already" in capsys.readouterr().err
    assert files(tmp_path) == before
    run("--top_k", 1, "--overwrite")
    assert files(tmp_path).keys() == before.keys()
    assert files(tmp_path)["samples/sample-1-1.mid"] != before["samples/sample-1-1.mid"]


@pytest.mark.usefixtures("no_sound")
def test_a_sample_that_loses_its_way_in_tokens_is_cut_and_reported(run, capsys, monkeypatch):
    monkeypatch.setattr(generate, "SPARE_TOKENS", 0)
    monkeypatch.setattr(generate, "TOKENS_PER_SECOND", 2)
    run(seconds=60)
    said = capsys.readouterr()
    assert "sample-1-1 was cut at 120 tokens" in said.err
    assert "120 tokens" in said.out.splitlines()[-1]


def refused(capsys, folder):
    """Returns what was said, once it is sure that it was one line and that the folder is as empty as before."""
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
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
        (["--tempreature", "1"], "unrecognized arguments: --tempreature"),
    ],
)
def test_a_mistake_ends_in_one_line_and_exit_code_2(run, tmp_path, capsys, words, complaint):
    (tmp_path / "in_the_way").touch()
    with pytest.raises(SystemExit) as stop:
        run(*words)
    assert stop.value.code == 2
    assert re.search(complaint, refused(capsys, tmp_path))


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
    assert f"{folder} cannot be loaded as a model" in refused(capsys, tmp_path)


@pytest.mark.usefixtures("no_sound")
def test_a_model_may_come_from_the_hub(run, model_folder, tmp_path, monkeypatch):
    hub = {"someone/pianist": str(model_folder)}
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.__getitem__)
    run("--model", "someone/pianist")
    assert "samples/sample-1-1.mid" in files(tmp_path)


def test_a_name_that_neither_the_disk_nor_the_hub_knows_ends_in_one_line(run, tmp_path, capsys, monkeypatch):
    def unreachable(name):
        raise OSError("no such repository\nand many words of advice")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(SystemExit) as stop:
        run("--model", "someone/pianist")
    assert stop.value.code == 2
    assert refused(capsys, tmp_path).endswith("cannot be had from the Hub: no such repository")


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
