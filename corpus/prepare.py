"""MIDI files to a corpus on disk: `python -m corpus.prepare {maestro,folder} ...`.

One process reads the files and writes the corpus, the others tokenize. Pieces are written in the order of their
source, whichever process is done first, so that the same files and the same tokenizer give the same bytes. Everything
is written aside and renamed when it is whole: a corpus stands complete or not at all.
"""

import argparse
import glob
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import uuid
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
from datasets.arrow_writer import ArrowWriter
from datasets.table import MemoryMappedTable
from tqdm import tqdm

from corpus.sources import SPLITS, Maestro, MidiFolder, Piece
from tokenization import MusicTxTokenizer

FEATURES = datasets.Features({"name": datasets.Value("string"), "input_ids": datasets.List(datasets.Value("uint16"))})

# The report is written last: a folder that holds one holds a whole corpus.
REPORT = "report.json"

# Pieces that travel to a worker together: enough to hide the journey, few enough to keep all workers busy to the end.
PIECES_PER_TASK = 8

# A file of a corpus stays below this, which a machine maps and a network moves without trouble.
SHARD_BYTES = 500_000_000


def prepare(
    source: Maestro | MidiFolder,
    output_dir: str | Path,
    tokenizer: MusicTxTokenizer | None = None,
    num_workers: int = os.cpu_count(),
    overwrite: bool = False,
) -> dict:
    """Tokenize a source and write it as a `datasets.DatasetDict` with a report and the tokenizer beside it.

    Args:
        source: Yields the pieces.
        output_dir: Where the corpus will stand.
        tokenizer: The paper's encoding unless given.
        num_workers: Processes that tokenize.
        overwrite: Whether a corpus that stands there may be replaced.

    Returns:
        The report, as it is written to `report.json`.

    Raises:
        ValueError: No file of the source can be used, or `num_workers` is below 1.
        FileExistsError: There is something at `output_dir`.
        OSError: `output_dir` cannot be written.
    """
    if num_workers < 1:
        raise ValueError(f"num_workers ({num_workers}) must be at least 1.")
    tokenizer = tokenizer or MusicTxTokenizer()
    with _written_aside(Path(output_dir), overwrite) as folder:
        report = _write_pieces(source, folder, tokenizer, num_workers)
        tokenizer.save_pretrained(folder / "tokenizer")
        (folder / REPORT).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return report


@contextmanager
def _written_aside(output_dir: Path, overwrite: bool) -> Iterator[Path]:
    """Give a folder beside `output_dir` to write to, which takes its place if all goes well and vanishes if not."""
    # A link is followed, so that the corpus stands on the disk it points to.
    output_dir = output_dir.resolve()
    if output_dir.exists() and any(output_dir.iterdir()):
        if not (output_dir / REPORT).is_file():
            raise FileExistsError(f"{output_dir} exists and is not a prepared corpus; choose another output_dir.")
        if not overwrite:
            raise FileExistsError(f"{output_dir} is prepared already; add --overwrite to prepare it again.")

    # No two runs share a name, so that what they write never mixes.
    prefix = f".{output_dir.name}.unfinished-"
    aside, replaced = (output_dir.with_name(f"{prefix}{uuid.uuid4().hex}") for _ in range(2))
    aside.mkdir(parents=True)
    try:
        yield aside
        if overwrite and output_dir.exists():
            output_dir.replace(replaced)
        aside.replace(output_dir)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    # What has just been replaced, and what runs that were killed have left.
    for leftover in output_dir.parent.glob(f"{glob.escape(prefix)}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _write_pieces(source: Maestro | MidiFolder, folder: Path, tokenizer: MusicTxTokenizer, num_workers: int) -> dict:
    """Write the splits of a `datasets.DatasetDict` to a folder and return the report."""
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    is_note, token_seconds = np.array([token.startswith("NoteOn_") for token in tokens]), tokenizer.token_seconds
    counts = {split: Counter(pieces=0, notes=0, hours=0.0, tokens=0) for split in SPLITS}
    passed_over = {}
    content = hashlib.sha256(json.dumps(tokens).encode())
    streams = {split: folder / f"{split}.stream" for split in SPLITS}

    with ExitStack() as opened:
        progress = opened.enter_context(tqdm(desc=source.name, total=len(source), unit="file"))
        writers = {
            split: opened.enter_context(ArrowWriter(path=str(stream), features=FEATURES, writer_batch_size=16))
            for split, stream in streams.items()
        }

        def usable() -> Iterator[Piece]:
            for file in source:
                if isinstance(file, Piece):
                    yield file
                else:
                    passed_over[file.name] = file.reason
                    progress.update()

        for piece, ids in _tokenize(usable(), tokenizer, num_workers):
            progress.update()
            if isinstance(ids, str):
                passed_over[piece.name] = ids
                continue
            writers[piece.split].write({"name": piece.name, "input_ids": ids})
            counts[piece.split].update(
                pieces=1,
                notes=int(is_note[ids].sum()),
                hours=float(token_seconds[ids].sum()) / 3600,
                tokens=len(ids),
            )
            for part in (piece.name.encode(), piece.split.encode(), ids.astype("<u2").tobytes()):
                content.update(len(part).to_bytes(8, "little") + part)
        for writer in writers.values():
            writer.finalize()

    passed_over = dict(sorted(passed_over.items()))
    if not any(count["pieces"] for count in counts.values()):
        name, reason = next(iter(passed_over.items()))
        raise ValueError(f"None of the {len(source)} files can be used, beginning with {name}: {reason}")
    _save(streams, folder, content.hexdigest())
    return {
        "source": source.name,
        "files": len(source),
        "splits": {split: {**count, "hours": round(count["hours"], 3)} for split, count in counts.items()},
        "passed_over": passed_over,
        "fingerprint": content.hexdigest(),
    }


def _save(streams: dict[str, Path], folder: Path, fingerprint: str) -> None:
    """Turn streams of single pieces into the files that `datasets` maps: bounded, and in large batches."""
    corpus = datasets.DatasetDict()
    for split, stream in streams.items():
        # Given, because `datasets` would make it of the time of day.
        identity = hashlib.sha256(f"{fingerprint} {split}".encode()).hexdigest()[:16]
        corpus[split] = datasets.Dataset(
            MemoryMappedTable.from_file(str(stream)), split=datasets.NamedSplit(split), fingerprint=identity
        )
    # Given, because `datasets` would write a split without pieces in no shard at all and then fail to load it.
    num_shards = {split: 1 + stream.stat().st_size // SHARD_BYTES for split, stream in streams.items()}
    corpus.save_to_disk(folder, num_shards=num_shards)
    for stream in streams.values():
        stream.unlink()


def _tokenize(
    pieces: Iterator[Piece], tokenizer: MusicTxTokenizer, num_workers: int
) -> Iterator[tuple[Piece, np.ndarray | str]]:
    """Tokenize in parallel: every piece, in order, with its ids `uint16 [L]`, or with the reason why it has none.

    Few tasks are under way at a time, so that memory does not grow with the number of files. A file that takes its
    process down costs that file: what was under way is then tried again, piece by piece.
    """
    underway: deque[list[Piece]] = deque()
    results: deque[Future] = deque()
    pool = _pool(tokenizer, num_workers)
    try:
        while True:
            try:
                while len(underway) < 2 * num_workers and (task := list(islice(pieces, PIECES_PER_TASK))):
                    underway.append(task)
                    results.append(pool.submit(_tokenize_task, [piece.midi for piece in task]))
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


def _tokenize_one_by_one(pieces: list[Piece], tokenizer: MusicTxTokenizer) -> Iterator[tuple[Piece, np.ndarray | str]]:
    """Tokenize in a process beside, in a new one after every piece that takes it down."""
    pool = _pool(tokenizer, num_workers=1)
    for piece in pieces:
        try:
            yield piece, pool.submit(_tokenize_task, [piece.midi]).result()[0]
        except BrokenProcessPool:
            pool.shutdown()
            pool = _pool(tokenizer, num_workers=1)
            yield piece, "crashed the process that read it"
    pool.shutdown()


def _pool(tokenizer: MusicTxTokenizer, num_workers: int) -> ProcessPoolExecutor:
    # Forked workers have torch and transformers loaded already, which takes a spawned one seconds. Forking is safe
    # here because workers touch nothing that has threads; where a platform advises against it, it is not done.
    method = "fork" if sys.platform == "linux" else "spawn"
    context = multiprocessing.get_context(method)
    return ProcessPoolExecutor(num_workers, context, initializer=_start_worker, initargs=(tokenizer,))


def _start_worker(tokenizer: MusicTxTokenizer) -> None:
    global _tokenizer
    _tokenizer = tokenizer
    # Ctrl-C is for the process that writes. Should that one be killed, its workers must not wait for it forever.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _tokenize_task(midis: list[bytes]) -> list[np.ndarray | str]:
    return [_ids_or_reason(midi) for midi in midis]


def _ids_or_reason(midi: bytes) -> np.ndarray | str:
    try:
        ids = _tokenizer.encode(midi, add_special_tokens=False)
        return np.array([_tokenizer.bos_token_id, *ids, _tokenizer.eos_token_id], dtype=np.uint16)
    except ValueError as error:
        return str(error).removeprefix("the MIDI bytes: ")
    except Exception as error:  # whatever a parser may raise: one file never ends the run
        return f"{type(error).__name__}: {error}"


def summary(report: dict) -> str:
    """Say what a report holds, for the eye."""
    lines = [f"{'split':<12}{'pieces':>8}{'notes':>12}{'hours':>9}{'tokens':>13}"]
    lines += [
        f"{split:<12}{count['pieces']:>8,}{count['notes']:>12,}{count['hours']:>9,.1f}{count['tokens']:>13,}"
        for split, count in report["splits"].items()
    ]
    passed_over = report["passed_over"]
    lines.append(f"passed over: {len(passed_over)} of {report['files']:,} files")
    lines += [f"  {name}: {reason}" for name, reason in passed_over.items()]
    lines.append(f"fingerprint: {report['fingerprint']}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, prepare, and say what came of it; what a user can mend ends in one line and code 2."""
    parser = argparse.ArgumentParser(prog="python -m corpus.prepare", description="Tokenize music for training.")
    sources = parser.add_subparsers(dest="source", required=True)
    maestro = sources.add_parser("maestro", help="MAESTRO, in its official split")
    where = maestro.add_mutually_exclusive_group(required=True)
    where.add_argument("--archive", help="the published archive, such as maestro-v3.0.0-midi.zip")
    where.add_argument("--input_dir", help="the folder where it was unpacked")
    folder = sources.add_parser("folder", help="a folder of your own MIDI files, split by content")
    folder.add_argument("--input_dir", required=True, help="the folder; the files may lie in folders in it")
    for each in (maestro, folder):
        each.add_argument("--output_dir", required=True, help="where the corpus will stand")
        each.add_argument("--num_workers", type=int, default=os.cpu_count(), help="processes (default: %(default)s)")
        each.add_argument("--overwrite", action="store_true", help="replace the corpus that stands at --output_dir")
    options = parser.parse_args(arguments)

    datasets.disable_progress_bars()
    try:
        if options.source == "maestro":
            source = Maestro(options.archive or options.input_dir)
        else:
            source = MidiFolder(options.input_dir)
        report = prepare(source, options.output_dir, num_workers=options.num_workers, overwrite=options.overwrite)
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted; nothing is left behind", file=sys.stderr)
        sys.exit(130)
    print(summary(report))
    print(f"corpus: {options.output_dir}")


if __name__ == "__main__":
    main()
