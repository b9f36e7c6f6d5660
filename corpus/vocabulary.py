"""Music to a tokenizer of one's own: `python -m corpus.vocabulary {maestro,giantmidi,folder} ... --encoding REMI`.

An encoding writes a note in three or four tokens. A vocabulary that is trained on a source has ids of their own for
what often follows each other, so that the same music takes fewer. What comes out is a saved tokenizer, for
`corpus.prepare --tokenizer`.
"""

import argparse
import sys
from pathlib import Path

from corpus import flags
from corpus.commands import run_command

if __name__ == "__main__":  # --help and mistakes are answered before imports that take seconds
    flags.vocabulary(__doc__).parse_args()

import numpy as np

from corpus.plain_text import printable
from corpus.sources import GiantMidi, Maestro, MidiFolder, Piece
from tokenization import MusicTxTokenizer
from tokenization.encodings import ENCODINGS

SOURCES = {"maestro": Maestro, "giantmidi": GiantMidi, "folder": MidiFolder}

# Held-out pieces by which the new vocabulary is measured.
MEASURED_PIECES = 20


def find_encoding(name: str) -> MusicTxTokenizer:
    """Make a tokenizer of an encoding.

    Args:
        name: Of an encoding with its usual settings, such as REMI, or a folder where a tokenizer was saved.

    Returns:
        The tokenizer.

    Raises:
        ValueError: It is neither, or an encoding that has no usual settings.
    """
    if name in ENCODINGS:
        return MusicTxTokenizer.from_miditok(ENCODINGS[name]())
    if (Path(name) / "miditok.json").is_file():
        return MusicTxTokenizer.from_pretrained(name)
    raise ValueError(f"{name} is no folder of a saved tokenizer and none of {', '.join(ENCODINGS)}.")


def readable(tokenizer: MusicTxTokenizer, pieces: list[Piece], limit: int) -> tuple[list[bytes], int]:
    """Take pieces that the tokenizer can write, evenly from first to last.

    Args:
        tokenizer: The tokenizer.
        pieces: The pieces.
        limit: How many are looked at, at most.

    Returns:
        The music of those that it can write, and their length in tokens, all together.
    """
    music, tokens = [], 0
    for index in np.unique(np.linspace(0, len(pieces) - 1, min(limit, len(pieces))).astype(int)):
        try:
            tokens += len(tokenizer.encode(pieces[index].music))
        except ValueError:
            continue
        music.append(pieces[index].music)
    return music, tokens


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for a mistake of the user, 130 after Ctrl-C."""
    parser = flags.vocabulary(__doc__)
    options = parser.parse_args(argv)
    return run_command(parser.prog, lambda: _run(options), "interrupted; nothing was written")


def _run(options: argparse.Namespace) -> None:
    """Train the tokenizer, print what that is worth, and save it."""
    if options.output_dir.exists():
        raise FileExistsError(f"{options.output_dir} exists already; choose another output_dir.")
    tokenizer = find_encoding(options.encoding)
    pieces = [piece for piece in SOURCES[options.source](options.input) if isinstance(piece, Piece)]
    music, _ = readable(tokenizer, [piece for piece in pieces if piece.split == "train"], options.max_pieces)
    if not music:
        raise ValueError(f"{options.input} has no piece in its train split that {options.encoding} can write.")
    trained = tokenizer.train_new_from_iterator(music, options.vocab_size, options.model)
    print(f"{len(music)} pieces gave {len(trained) - len(tokenizer)} new tokens beside the {len(tokenizer)} before")
    held_out = [piece for piece in pieces if piece.split == "validation"]
    music, before = readable(tokenizer, held_out, MEASURED_PIECES)
    if music:
        after = sum(len(trained.encode(each)) for each in music)
        print(f"{len(music)} validation pieces: {before:,} tokens without them, {after:,} with ({after / before:.0%})")
    trained.save_pretrained(options.output_dir)
    print(printable(f"tokenizer: {options.output_dir}"))


if __name__ == "__main__":
    sys.exit(main())
