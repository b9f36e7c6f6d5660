"""Write the model card of a folder: `python -m hub.card folder --facts facts.json [more.json ...]`.

The card is `model_card.md` filled with the size and shape of the folder's model and with facts from JSON files:
`evaluation.report` writes the numbers, you write the rest. A fact that is missing, empty or unknown is an error.
"""

import argparse
import json
import math
import re
import sys
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import get_origin

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import SafetensorError, safe_open

from corpus.commands import run_command
from corpus.plain_text import printable

# What the types of facts are called in JSON.
KINDS = {str: "a string", int: "a whole number", dict: "an object"}

TEMPLATE = Path(__file__).with_name("model_card.md")


@dataclass(frozen=True)
class Facts:
    """The facts of a card that cannot be read from the folder.

    Args:
        repository: `user/name` on the Hub, for the snippets that load the model.
        license: Licence of the weights, by the Hub's identifier, such as `cc-by-nc-sa-4.0`.
        dataset: Name of the data set with its version, such as `MAESTRO v2.0.0`.
        dataset_id: Its identifier in the card's metadata, such as `maestro`.
        dataset_url: Where it is found.
        dataset_license: Its licence in words, such as `CC BY-NC-SA 4.0`.
        training_data: Sentences: which split was trained on, how much of it there is, how it was augmented.
        recipe: The command that trained the model.
        tokens_seen: Tokens that the model was trained on, repeats counted.
        hardware: What it was trained on and for how long.
        window: Tokens in one evaluation window, which is the context that the likelihoods were measured with.
        nll: Negative log-likelihood in nats per token, by split: `{"validation": 2.5, "test": 2.5}`.
        statistics: Rows of the table of finished music against the validation split:
            `{"notes per second": {"model": 9.1, "validation": 9.4}}`.
        memorization: Sentences: what was measured of copying from the training data, or that nothing was.
        overlap: Rows of the table of overlaps with the training split, from 0 to 1; optional:
            `{"notes per second": {"model": 0.91, "validation": 0.98}}`.
    """

    repository: str
    license: str
    dataset: str
    dataset_id: str
    dataset_url: str
    dataset_license: str
    training_data: str
    recipe: str
    tokens_seen: int
    hardware: str
    window: int
    nll: dict[str, float]
    statistics: dict[str, dict[str, float]]
    memorization: str
    overlap: dict[str, dict[str, float]] = field(default_factory=dict)


def read_facts(paths: list[Path]) -> Facts:
    """Read facts from JSON files; for a fact in two of them, the later file counts.

    Args:
        paths: JSON files, each an object with fields of `Facts`.

    Returns:
        The facts, complete.

    Raises:
        ValueError: If a file is no JSON object, or a fact is missing, empty, unknown or not a finite number.
    """
    found = {}
    for path in paths:
        try:
            found |= json.loads(path.read_text(encoding="utf-8"))
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not a JSON object of facts: {error}.") from error
    names = [fact.name for fact in fields(Facts)]
    if unknown := sorted(found.keys() - set(names)):
        raise ValueError(f"unknown facts: {', '.join(unknown)}; the known ones are {', '.join(names)}.")
    needed = [fact.name for fact in fields(Facts) if fact.default_factory is MISSING]
    if missing := [name for name in needed if not found.get(name)]:
        raise ValueError(f"missing or empty facts: {', '.join(missing)}; add them to {paths[-1]} (see --template).")
    facts = Facts(**found)
    _check_types(facts)
    rows = [*facts.statistics.items(), *facts.overlap.items()]
    if odd := [name for name, row in rows if row.keys() != {"model", "validation"}]:
        raise ValueError(f"statistics and overlap need the two numbers model and validation each: {', '.join(odd)}.")
    numbers = [*facts.nll.values(), *(number for _, row in rows for number in row.values())]
    # JSON knows whole numbers that no float holds, and Python's has NaN.
    if not all(type(number) in (int, float) and abs(number) < 1e15 for number in numbers):
        raise ValueError("nll, statistics and overlap must be finite numbers.")
    return facts


def _check_types(facts: Facts) -> None:
    """Refuse facts of another type than the card's, and those that would not stay in their place on it."""
    for fact in fields(Facts):
        value, kind = getattr(facts, fact.name), get_origin(fact.type) or fact.type
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{fact.name} is {json.dumps(value)}; it must be {KINDS[kind]}.")
        if kind is int and value < 1:
            raise ValueError(f"{fact.name} is {value}; it must be at least 1.")
    for name in ("statistics", "overlap"):
        if odd := [row for row, numbers in getattr(facts, name).items() if not isinstance(numbers, dict)]:
            raise ValueError(f"{name} need an object with model and validation for each row: {', '.join(odd)}.")
    if not re.fullmatch(r"[\w./-]+", facts.repository):
        raise ValueError(f"repository is {facts.repository!r}; write it as user/name.")
    if not re.fullmatch(r"https?://[^\s()<>]+", facts.dataset_url):
        raise ValueError(f"dataset_url is {facts.dataset_url!r}; it must begin with http:// or https://.")


def _on_card(value):
    """Make text harmless on a card: no HTML, no control characters, and no end of a code span."""
    if isinstance(value, dict):
        return {_on_card(name): _on_card(inner) for name, inner in value.items()}
    if not isinstance(value, str):
        return value
    return printable(" ".join(value.split())).replace("<", "&lt;").replace("|", "\\|")


def count_parameters(folder: Path) -> int:
    """Count the numbers in a folder's weights; tied weights are stored, and counted, once.

    Args:
        folder: A folder with `*.safetensors`.

    Returns:
        The number of parameters.

    Raises:
        ValueError: If the folder holds no weights, or broken ones.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} has no model.safetensors; save the model there with save_pretrained.")
    count = 0
    for file in files:
        try:
            with safe_open(file, framework="numpy") as weights:
                # Shapes are in the header: no tensor is read.
                count += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{file} is broken ({error}); save the model again.") from error
    return count


def make_card(folder: Path, facts: Facts) -> ModelCard:
    """Fill the template.

    Args:
        folder: A folder with `config.json` and `*.safetensors`.
        facts: What cannot be read from the folder.

    Returns:
        The card, with metadata that the Hub understands.

    Raises:
        ValueError: If the folder holds no model.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json; save the model there with save_pretrained.")
    name = facts.repository.split("/")[-1]
    data = ModelCardData(
        model_name=name,
        license=facts.license,
        library_name="transformers",
        # The Hub's name for a causal language model; it has none for MIDI.
        pipeline_tag="text-generation",
        tags=["music", "midi", "piano", "music-generation", "symbolic-music", "music-transformer"],
        datasets=[facts.dataset_id],
        metrics=["negative-log-likelihood"],
        eval_results=[
            EvalResult(
                task_type="text-generation",
                task_name="Piano performance generation",
                dataset_type=facts.dataset_id,
                dataset_name=facts.dataset,
                dataset_split=split,
                metric_type="negative-log-likelihood",
                metric_name="Negative log-likelihood (nats per token)",
                metric_value=nll,
            )
            for split, nll in facts.nll.items()
        ],
    )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError(f"{folder}/config.json holds no JSON object; save the model again.")
    return ModelCard.from_template(
        data,
        str(TEMPLATE),
        name=name,
        facts=_on_card(asdict(facts)) | {"recipe": printable(facts.recipe).replace("`", "'")},
        config=config,
        parameters=count_parameters(folder),
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for a mistake of the user."""
    parser = argparse.ArgumentParser(
        prog="python -m hub.card",
        description="Write a folder's model card.",
        epilog=Facts.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, nargs="?", help="folder with the model")
    parser.add_argument("--facts", type=Path, nargs="+", help="JSON files with the facts")
    parser.add_argument("--template", action="store_true", help="print a JSON file of facts to fill in, and end")
    args = parser.parse_args(argv)
    if args.template:
        empty = {fact.name: (get_origin(fact.type) or fact.type)() for fact in fields(Facts)}
        print(json.dumps(empty, indent=2))
        return 0
    if args.folder is None or not args.facts:
        print("hub.card: give a folder and --facts; --template prints a file of facts to fill in.", file=sys.stderr)
        return 2

    def write():
        make_card(args.folder, read_facts(args.facts)).save(args.folder / "README.md")
        print(printable(args.folder / "README.md"))

    return run_command("hub.card", write)


if __name__ == "__main__":
    sys.exit(main())
