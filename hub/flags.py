"""The command lines of this room that load models, apart from what they run: parsed before PyTorch is imported.

Each function takes the docstring of its command.
"""

from argparse import ArgumentParser
from pathlib import Path

from corpus.commands import make_parser


def bundle(documentation: str) -> ArgumentParser:
    """Make the parser of `hub.bundle`."""
    parser = make_parser("hub.bundle", documentation)
    parser.add_argument("folder", type=Path, help="folder with model and tokenizer")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write")
    return parser


def sample(documentation: str) -> ArgumentParser:
    """Make the parser of `hub.sample`."""
    parser = make_parser("hub.sample", documentation)
    parser.add_argument("folder", type=Path, help="folder with model and tokenizer")
    parser.add_argument("--seconds", type=float, default=30.0, help="seconds of music (default: %(default)s)")
    return parser


def web(documentation: str) -> ArgumentParser:
    """Make the parser of `hub.web`."""
    parser = make_parser("hub.web", documentation)
    parser.add_argument("folder", help="folder with model and tokenizer, or user/name on the Hub")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write")
    parser.add_argument("--window", type=int, help="tokens that the model sees at once (default: its sliding window)")
    parser.add_argument("--model_only", action="store_true", help="leave out the page, which needs Node")
    return parser
