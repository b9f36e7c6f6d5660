"""A vocabulary is trained on the train split of a source, and saved for `corpus.prepare`."""

import re

import pytest
from miditok import REMI, TokenizerConfig

from corpus.sources import MidiFolder
from corpus.vocabulary import main
from tokenization import MusicTxTokenizer


@pytest.fixture
def run(midi_folder, broken_midis, tmp_path):
    """Return the function that trains on a folder with one broken file, for the tokenizer or the exit code."""
    (midi_folder / "broken.mid").write_bytes(broken_midis["truncated"])

    def run(*words):
        code = main(["folder", "--input", str(midi_folder), "--output_dir", str(tmp_path / "trained"), *words])
        return code or MusicTxTokenizer.from_pretrained(tmp_path / "trained")

    return run


def test_a_trained_tokenizer_of_the_wished_size_is_saved(run, midi_folder, make_score, capsys):
    tokenizer = run("--encoding", "REMI", "--vocab_size", "400")
    assert len(tokenizer) == 400
    assert len(tokenizer.encode(make_score(3))) < len(MusicTxTokenizer.from_miditok(REMI()).encode(make_score(3)))
    learned = sum(piece.split == "train" for piece in MidiFolder(midi_folder)) - 1
    assert f"{learned} pieces gave 43 new tokens beside the 357 before" in capsys.readouterr().out


def test_the_papers_encoding_is_what_is_trained_unless_another_is_named(run):
    tokenizer = run("--vocab_size", "420", "--model", "Unigram", "--max_pieces", "2")
    assert type(tokenizer.miditok).__name__ == "Performance"
    assert len(tokenizer) == 420


def test_an_encoding_with_settings_of_its_own_comes_as_a_folder(run, tmp_path):
    coarse = REMI(TokenizerConfig(num_velocities=4, special_tokens=["PAD", "BOS", "EOS"]))
    MusicTxTokenizer.from_miditok(coarse).save_pretrained(tmp_path / "coarse")
    tokenizer = run("--encoding", str(tmp_path / "coarse"), "--vocab_size", "360")
    assert tokenizer.miditok.config.num_velocities == 4


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--vocab_size", "100"], r"vocab_size \(100\) must be more than the 391 tokens"),
        (["--vocab_size", "500", "--encoding", "Octuple"], "Octuple is no folder of a saved tokenizer and none of"),
        (["--vocab_size", "500", "--encoding", "MMM"], "MMM must be used with a `base_tokenizer`"),
        (["--vocab_size", "500", "--input", "absent"], "absent"),
        (["--vocab_size", "500", "--output_dir", "."], r"\. exists already"),
    ],
)
def test_a_mistake_ends_in_one_line_and_code_2(run, capsys, words, complaint):
    assert run(*words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(complaint, line)
