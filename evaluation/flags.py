"""The command lines of this room, apart from what they run: they are parsed before PyTorch is imported.

Each function takes the docstring of its command.
"""

from argparse import ArgumentParser
from pathlib import Path

from corpus.commands import make_parser
from corpus.splits import SPLITS

# How long the pieces are that are searched for copies: scores grow with it.
EXCERPT_SECONDS = 30.0


def _model_parser(module: str, documentation: str) -> ArgumentParser:
    """Make the parser of a command that loads a model."""
    parser = make_parser(module, documentation)
    parser.add_argument("--model", required=True, help="folder, or user/name on the Hub")
    parser.add_argument("--trust_remote_code", action="store_true", help="run the code that comes with the model")
    return parser


def _corpus_parser(module: str, documentation: str) -> ArgumentParser:
    """Make the parser of a command that measures a model on a corpus."""
    parser = _model_parser(module, documentation)
    parser.add_argument("--corpus", required=True, help="prepared corpus: a folder, or user/name on the Hub")
    return parser


def controls(documentation: str) -> ArgumentParser:
    """Make the parser of `evaluation.controls`."""
    parser = _model_parser("evaluation.controls", documentation)
    parser.add_argument("--num_samples", type=int, default=200, help="number of pieces (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same pieces")
    return parser


def drift(documentation: str) -> ArgumentParser:
    """Make the parser of `evaluation.drift`."""
    parser = _corpus_parser("evaluation.drift", documentation)
    parser.add_argument("--minutes", type=float, default=20.0, help="length of each piece (default: %(default)s)")
    parser.add_argument("--num_samples", type=int, default=1, help="pieces to generate (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same pieces")
    return parser


def infilling(documentation: str) -> ArgumentParser:
    """Make the parser of `evaluation.infilling`."""
    parser = _corpus_parser("evaluation.infilling", documentation)
    parser.add_argument("--split", default="validation", choices=SPLITS)
    parser.add_argument("--num_gaps", type=int, default=400, help="gaps to score (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same gaps (default: %(default)s)")
    return parser


def likelihood(documentation: str) -> ArgumentParser:
    """Make the parser of `evaluation.likelihood`."""
    parser = _corpus_parser("evaluation.likelihood", documentation)
    parser.add_argument("--split", default="validation", choices=SPLITS)
    parser.add_argument("--length", type=int, default=1024, help="tokens per window (default: %(default)s)")
    parser.add_argument("--context", type=int, default=1, help="tokens that consecutive windows share (default: 1)")
    parser.add_argument("--batch_size", type=int, default=4, help="windows per forward pass (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="JSON file for the numbers and the curve along the window")
    return parser


def originality(documentation: str) -> ArgumentParser:
    """Make the parser of `evaluation.originality`."""
    parser = make_parser("evaluation.originality", documentation)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="index a training set")
    build.add_argument("--corpus", required=True, help="prepared corpus: a folder")
    build.add_argument(
        "--seconds", type=float, default=EXCERPT_SECONDS, help="length of the pieces to check (default: %(default)s)"
    )
    check = commands.add_parser("check", help="search MIDI files for copies")
    check.add_argument("midi", nargs="+", type=Path, help="MIDI files")
    check.add_argument("--output_dir", type=Path, help="folder for the most similar passages, as MIDI")
    for command in (build, check):
        command.add_argument("--index", type=Path, required=True, help="folder of the index")
    return parser


def report(documentation: str) -> ArgumentParser:
    """Make the parser of `evaluation.report`."""
    parser = _corpus_parser("evaluation.report", documentation)
    parser.add_argument("--output_dir", type=Path, default=Path("report"), help="folder (default: %(default)s)")
    parser.add_argument("--num_samples", type=int, default=64, help="samples to generate (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of each (default: %(default)s)")
    parser.add_argument("--min_p", type=float, default=0.02, help="as for generate.py (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same report (default: %(default)s)")
    parser.add_argument(
        "--splits",
        nargs="*",
        choices=SPLITS,
        default=["validation"],
        help="splits to score, or none (default: validation)",
    )
    parser.add_argument("--length", type=int, default=1024, help="tokens per window (default: %(default)s)")
    return parser
