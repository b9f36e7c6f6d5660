"""Prepare a corpus: `python -m corpus.prepare {maestro,giantmidi,jsb,folder,mix} ... --output_dir data/mine`.

One process reads the files and writes the corpus, the others tokenize. Pieces are written in the order of their
source, so that the same files and the same tokenizer give the same bytes. A corpus appears complete or not at all. Its
files are those of a data set on the Hub.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

from corpus import flags
from corpus.commands import run_command

if __name__ == "__main__":  # --help and mistakes are answered before imports that take seconds
    flags.prepare(__doc__).parse_args()

import numpy as np
from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError
from tqdm import tqdm

from corpus.atomic_files import atomic_folder, exclusive
from corpus.dataset import load_tokenizer
from corpus.plain_text import escape_markdown, printable
from corpus.shards import SplitWriter
from corpus.sources import (
    GiantMidi,
    JsbChorales,
    Maestro,
    MidiFolder,
    Mixture,
    PassedOver,
    Piece,
)
from corpus.splits import SPLITS
from corpus.vocabulary import find_encoding
from tokenization import MusicTxTokenizer

# The report is written last: a folder with a report has a complete corpus.
REPORT = "report.json"

# Pieces that are sent to a worker together: enough to hide the cost of sending, few enough to keep all workers busy to
# the end. A task ends with the piece that makes it this long, so that large files do not add up in memory.
PIECES_PER_TASK = 8
TASK_BYTES = 2_000_000

# More names than this, of the files that were passed over, do not fit a screen; the report holds them all.
NAMES_SHOWN = 20


class Source(Protocol):
    """One of the classes in `corpus.sources`."""

    name: str
    licence: str

    def __len__(self) -> int:
        """How many files there are."""

    def __iter__(self) -> Iterator[Piece | PassedOver]:
        """Every file, those held out for validation and test first."""


class Tokenized(NamedTuple):
    """A tokenized piece: its ids from BOS to EOS, `uint16 [L]`, and its notes and seconds."""

    ids: np.ndarray
    notes: int
    seconds: float


def prepare(
    source: Source,
    output_dir: str | Path,
    tokenizer: MusicTxTokenizer | None = None,
    num_workers: int = os.cpu_count(),
    overwrite: bool = False,
) -> dict:
    """Tokenize a source and write it as a `datasets.DatasetDict` with a report and the tokenizer beside it.

    Of pieces with the same ids only the first is kept; pieces of the validation and test splits come first.

    Args:
        source: Yields the pieces.
        output_dir: The folder to write.
        tokenizer: The paper's encoding unless given.
        num_workers: Processes that tokenize.
        overwrite: Whether to replace a corpus that is there.

    Returns:
        The report, as it is written to `report.json`.

    Raises:
        ValueError: No file of the source can be used, or `num_workers` is below 1.
        FileExistsError: There is something at `output_dir`.
        BlockingIOError: Another process prepares a corpus at `output_dir`.
        OSError: `output_dir` cannot be written.
    """
    if num_workers < 1:
        raise ValueError(f"num_workers ({num_workers}) must be at least 1.")
    tokenizer = tokenizer or MusicTxTokenizer()
    if len(tokenizer) > 1 << 16:
        raise ValueError(f"The vocabulary has {len(tokenizer)} tokens; a corpus stores at most {1 << 16}.")
    # A link is resolved, so that the corpus is on the disk that it points to.
    output_dir = Path(output_dir).resolve()
    with exclusive(output_dir.with_name(f".{output_dir.name}.lock")), atomic_folder(output_dir) as folder:
        _may_write(output_dir, overwrite)
        report = _write_pieces(source, folder, tokenizer, num_workers)
        tokenizer.save_pretrained(folder / "tokenizer")
        (folder / "README.md").write_text(_card(report), encoding="utf-8")
        (folder / REPORT).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return report


def _may_write(output_dir: Path, overwrite: bool) -> None:
    """Raise FileExistsError if `output_dir` holds files that may not be replaced."""
    if output_dir.exists() and any(output_dir.iterdir()):
        if not (output_dir / REPORT).is_file():
            raise FileExistsError(f"{output_dir} exists and is not a prepared corpus; choose another output_dir.")
        if not overwrite:
            raise FileExistsError(f"{output_dir} is prepared already; add --overwrite to prepare it again.")


def _write_pieces(source: Source, folder: Path, tokenizer: MusicTxTokenizer, num_workers: int) -> dict:
    """Write the splits of a `datasets.DatasetDict` to a folder and return the report."""
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    counts = {split: Counter(pieces=0, notes=0, hours=0.0, tokens=0) for split in SPLITS}
    passed_over = {}
    # All that grows with the number of files: the hash of each piece's ids, and its name.
    first_with: dict[bytes, str] = {}
    content = hashlib.sha256(json.dumps(tokens).encode())
    writers = {split: SplitWriter(folder / split) for split in SPLITS}

    with tqdm(desc=printable(source.name), total=len(source), unit="file", disable=None) as progress:

        def usable() -> Iterator[Piece]:
            for file in source:
                if isinstance(file, Piece):
                    yield file
                else:
                    passed_over[file.name] = file.reason
                    progress.update()

        for piece, tokenized in _tokenize(usable(), tokenizer, num_workers):
            progress.update()
            if isinstance(tokenized, str):
                passed_over[piece.name] = tokenized
                continue
            ids = tokenized.ids
            first = first_with.setdefault(hashlib.sha256(ids.tobytes()).digest()[:16], piece.name)
            if first is not piece.name:
                passed_over[piece.name] = f"the same music as {first}"
                continue
            row = {"name": piece.name, "composer": piece.composer, "title": piece.title, "weight": piece.weight}
            writers[piece.split].write(row | {"input_ids": ids})
            counts[piece.split].update(
                pieces=1, notes=tokenized.notes, hours=tokenized.seconds / 3600, tokens=len(ids)
            )
            split = piece.split if piece.weight == 1 else f"{piece.split} {piece.weight!r}"
            for part in (piece.name.encode(), split.encode(), ids.astype("<u2").tobytes()):
                content.update(len(part).to_bytes(8, "little") + part)

    passed_over = dict(sorted(passed_over.items()))
    if not first_with:
        name, reason = next(iter(passed_over.items()))
        raise ValueError(f"None of the {len(source)} files can be used, beginning with {name}: {reason}")
    for split, writer in writers.items():
        # Given, because `datasets` would derive it from the time.
        writer.close(hashlib.sha256(f"{content.hexdigest()} {split}".encode()).hexdigest()[:16])
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(SPLITS)}), encoding="utf-8")
    return {
        "source": source.name,
        "licence": source.licence,
        "files": len(source),
        "splits": {split: {**count, "hours": round(count["hours"], 3)} for split, count in counts.items()},
        "passed_over": passed_over,
        "fingerprint": content.hexdigest(),
    }


def _tokenize(
    pieces: Iterator[Piece], tokenizer: MusicTxTokenizer, num_workers: int
) -> Iterator[tuple[Piece, Tokenized | str]]:
    """Tokenize in parallel, and yield every piece in order with its ids, or with the reason why there are none.

    Few tasks are submitted at a time, so that memory does not grow with the number of files. If a file crashes its
    process, the submitted pieces are tried again one by one, and only that file is left out.
    """
    underway: deque[list[Piece]] = deque()
    results: deque[Future] = deque()
    pool = _pool(tokenizer, num_workers)
    try:
        while True:
            try:
                while len(underway) < 2 * num_workers and (task := _take_task(pieces)):
                    underway.append(task)
                    results.append(pool.submit(_tokenize_task, [piece.music for piece in task]))
                if not underway:
                    return
                yield from zip(underway[0], results[0].result(), strict=True)
                underway.popleft()
                results.popleft()
            except BrokenProcessPool:
                pool.shutdown()
                pool = _pool(tokenizer, num_workers)
                results.clear()
                while underway:
                    yield from _tokenize_one_by_one(underway.popleft(), tokenizer)
    finally:
        pool.shutdown(cancel_futures=True)


def _take_task(pieces: Iterator[Piece]) -> list[Piece]:
    """Take the pieces of a task; an empty list if none are left."""
    task, size = [], 0
    for piece in islice(pieces, PIECES_PER_TASK):
        task.append(piece)
        size += memoryview(piece.music).nbytes
        if size >= TASK_BYTES:
            break
    return task


def _tokenize_one_by_one(pieces: list[Piece], tokenizer: MusicTxTokenizer) -> Iterator[tuple[Piece, Tokenized | str]]:
    """Tokenize in a separate process, and in a new one after every piece that crashes it."""
    pool = _pool(tokenizer, num_workers=1)
    for piece in pieces:
        try:
            yield piece, pool.submit(_tokenize_task, [piece.music]).result()[0]
        except BrokenProcessPool:
            pool.shutdown()
            pool = _pool(tokenizer, num_workers=1)
            yield piece, "crashed the process that read it"
    pool.shutdown()


def _pool(tokenizer: MusicTxTokenizer, num_workers: int) -> ProcessPoolExecutor:
    # Forked workers have torch and transformers loaded; spawned ones need seconds for it. Forking is safe here because
    # workers use nothing with threads; it is not done on platforms that advise against it.
    method = "fork" if sys.platform == "linux" else "spawn"
    context = multiprocessing.get_context(method)
    return ProcessPoolExecutor(num_workers, context, initializer=_start_worker, initargs=(tokenizer,))


def _start_worker(tokenizer: MusicTxTokenizer) -> None:
    global _tokenizer
    _tokenizer = tokenizer
    # Only the writing process handles Ctrl-C. If it is killed, its workers must end too.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _tokenize_task(pieces: list[bytes | np.ndarray]) -> list[Tokenized | str]:
    return [_tokenized_or_reason(music) for music in pieces]


def _tokenized_or_reason(music: bytes | np.ndarray) -> Tokenized | str:
    try:
        ids = _tokenizer.encode(music, add_special_tokens=False)
        score = _tokenizer.to_score(ids)
        ids = np.array([_tokenizer.bos_token_id, *ids, _tokenizer.eos_token_id], dtype=np.uint16)
        return Tokenized(ids, score.note_num(), score.to("second").end())
    except ValueError as error:
        return str(error).removeprefix("the MIDI bytes: ")
    except Exception as error:  # whatever a parser may raise: one file never ends the run
        return f"{type(error).__name__}: {error}"


def summary(report: dict) -> str:
    """Format a report for the terminal."""
    lines = [_table(report)]
    passed_over = report["passed_over"]
    lines.append(f"passed over: {len(passed_over):,} of {report['files']:,} files")
    lines += [printable(f"  {name}: {reason}") for name, reason in islice(passed_over.items(), NAMES_SHOWN)]
    if len(passed_over) > NAMES_SHOWN:
        lines.append(f"  and {len(passed_over) - NAMES_SHOWN:,} more, which {REPORT} names")
    lines.append(f"fingerprint: {report['fingerprint']}")
    for split in ("train", "validation"):
        if not report["splits"][split]["pieces"]:
            lines.append(
                f"No piece fell into the {split} split, and training needs one: prepare a folder of few files with "
                "another --validation_share, or with --metadata that has a column split."
            )
    return "\n".join(lines)


def _table(report: dict) -> str:
    lines = [f"{'split':<12}{'pieces':>8}{'notes':>12}{'hours':>9}{'tokens':>13}"]
    lines += [
        f"{split:<12}{count['pieces']:>8,}{count['notes']:>12,}{count['hours']:>9,.1f}{count['tokens']:>13,}"
        for split, count in report["splits"].items()
    ]
    return "\n".join(lines)


def _card(report: dict) -> str:
    """Return the card of the data set on the Hub; its metadata tells `datasets.load_dataset` the splits."""
    files = "".join(f"  - split: {split}\n    path: {split}/data-*.arrow\n" for split in SPLITS)
    return f"""---
license: {report["licence"]}
tags:
- music
- midi
configs:
- config_name: default
  data_files:
{files}---

# {escape_markdown(report["source"])}

Pieces as ids, from BOS to EOS, for training Music TX; the tokenizer is in `tokenizer/`.

```text
{_table(report)}
fingerprint: {report["fingerprint"]}
```
"""


def push_to_hub(corpus_dir: str | Path, repo_id: str) -> str:
    """Publish a corpus in one commit; a new repository is private.

    Args:
        corpus_dir: The folder that `prepare` wrote.
        repo_id: The data set on the Hub, `user/name`.

    Returns:
        Its URL.

    Raises:
        OSError: The Hub cannot be reached, or refuses.
    """
    hub = HfApi()
    try:
        # Few users own the rights to their corpus; those who do can make it public on the Hub.
        address = hub.create_repo(repo_id, repo_type="dataset", private=True, exist_ok=True)
        hub.upload_folder(
            repo_id=repo_id,
            repo_type="dataset",
            folder_path=corpus_dir,
            delete_patterns="*",
            commit_message="Prepared by Music TX",
        )
    except (HTTPError, OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise OSError(
            f"{corpus_dir} is prepared but not published: {reason} "
            f"To try again: hf upload {repo_id} {corpus_dir} --repo-type dataset"
        ) from None
    return str(address)


def _source_and_tokenizer(options: argparse.Namespace) -> tuple[Source, MusicTxTokenizer]:
    if options.source == "jsb":
        return JsbChorales(options.path), find_encoding("Chorales")
    if options.source == "mix":
        mixture = Mixture(options.corpora)
        tokenizers = {folder: load_tokenizer(folder) for folder in options.corpora}
        (one, tokenizer), *others = tokenizers.items()
        for other, other_tokenizer in others:
            if other_tokenizer.get_vocab() != tokenizer.get_vocab():
                raise ValueError(f"{one} and {other} have different vocabularies; prepare both with one tokenizer.")
        return mixture, tokenizer
    tokenizer = find_encoding(options.tokenizer)
    if options.source == "maestro":
        return Maestro(options.path, options.version), tokenizer
    if options.source == "giantmidi":
        return GiantMidi(options.path), tokenizer
    return MidiFolder(options.path, options.metadata, options.validation_share), tokenizer


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for a mistake of the user, 130 after Ctrl-C."""
    parser = flags.prepare(__doc__)
    options = parser.parse_args(argv)

    def run():
        source, tokenizer = _source_and_tokenizer(options)
        report = prepare(source, options.output_dir, tokenizer, options.num_workers, options.overwrite)
        print(summary(report))
        print(printable(f"corpus: {options.output_dir}"))
        if options.push_to_hub:
            print(f"published: {push_to_hub(options.output_dir, options.push_to_hub)}")

    return run_command(parser.prog, run, "interrupted; nothing is left behind")


if __name__ == "__main__":
    sys.exit(main())
