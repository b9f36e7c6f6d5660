"""The command lines of this room, apart from what they run: they are parsed before PyTorch is imported.

Each function takes the docstring of its command.
"""

import os
from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path

from corpus.commands import make_parser
from corpus.splits import VALIDATION_SHARE


def prepare(documentation: str) -> ArgumentParser:
    """Make the parser of `corpus.prepare`."""
    parser = make_parser("corpus.prepare", documentation)
    sources = parser.add_subparsers(dest="source", required=True, metavar="source")

    def add(name: str, what: str, where: str, required: bool = True) -> ArgumentParser:
        source = sources.add_parser(name, help=what, description=f"Prepare {what}.")
        source.add_argument("--input", dest="path", metavar="PATH", required=required, help=where)
        return source

    maestro = add("maestro", "MAESTRO, in its official split", "the archive or folder; downloaded if left out", False)
    maestro.add_argument(
        "--version", default="v3.0.0", help="which one to download, v2.0.0 or v3.0.0 (default: %(default)s)"
    )
    add("giantmidi", "GiantMIDI-Piano, split by composition", "the archive or folder that its authors hand out")
    add("jsb", "the JSB Chorales, in their usual split", "Jsb16thSeparated.json")
    folder = add("folder", "your own MIDI files, split by content", "the folder or zip archive, with its subfolders")
    folder.add_argument("--metadata", help="a csv with file_name and any of split, composer and title")
    folder.add_argument(
        "--validation_share",
        type=float,
        default=VALIDATION_SHARE,
        help="share of the files for validation, about; few files need a larger one (default: %(default)s)",
    )
    mix = sources.add_parser("mix", help="corpora that are prepared already, as one", description="Mix corpora.")
    mix.add_argument("corpora", type=_mixture, help="folders and weights: data/maestro=1,data/giantmidi=0.5")
    for name in ("maestro", "giantmidi", "folder"):
        sources.choices[name].add_argument(
            "--tokenizer", default="Performance", help="folder of a saved tokenizer, or an encoding such as REMI"
        )
    for source in sources.choices.values():
        source.add_argument("--output_dir", required=True, help="folder of the corpus")
        source.add_argument("--num_workers", type=int, default=os.cpu_count(), help="processes (default: %(default)s)")
        source.add_argument("--overwrite", action="store_true", help="replace the corpus at --output_dir")
        source.add_argument("--push_to_hub", metavar="USER/NAME", help="publish it as a private data set")
    return parser


def _mixture(text: str) -> dict[str, float]:
    """Read `data/maestro=1,data/giantmidi=0.5`."""
    parts = [part.rpartition("=") for part in text.split(",")]
    try:
        return {folder: float(weight) for folder, _, weight in parts if folder or float("nan")}
    except ValueError:
        raise ArgumentTypeError(
            f"{text} is no list of corpora and weights, such as data/maestro=1,data/giantmidi=0.5."
        ) from None


def vocabulary(documentation: str) -> ArgumentParser:
    """Make the parser of `corpus.vocabulary`."""
    parser = make_parser("corpus.vocabulary", documentation)
    parser.add_argument(
        "source", choices=("maestro", "giantmidi", "folder"), help="source of the music; the train split is used"
    )
    parser.add_argument("--input", metavar="PATH", required=True, help="its archive or folder")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of the tokenizer")
    parser.add_argument(
        "--encoding", default="Performance", help="such as REMI, or a saved tokenizer (default: %(default)s)"
    )
    parser.add_argument("--vocab_size", type=int, required=True, help="tokens to reach")
    parser.add_argument("--model", default="BPE", help="BPE, Unigram or WordPiece (default: %(default)s)")
    parser.add_argument("--max_pieces", type=int, default=200, help="pieces to learn from (default: %(default)s)")
    return parser
