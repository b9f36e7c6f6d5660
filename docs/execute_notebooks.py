"""Run the notebooks from top to bottom, and store what they print, draw and play in the files.

    python docs/execute_notebooks.py                       both notebooks, and the pictures of docs/ideas.md
    python docs/execute_notebooks.py --check --language en one of them, without writing

A cell that fails or warns ends the run, and nothing is written. Needs `pip install --editable ".[notebooks]"`.
"""

import argparse
import base64
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

DOCS = Path(__file__).resolve().parent
NOTEBOOKS = {"en": "annotated_music_transformer.ipynb", "es": "transformer_musical_anotado.ipynb"}

# The longest cell takes some twenty seconds of an idle core; machines are not always idle.
CELL_SECONDS = 400

# What IPython puts around the words of an error.
COLORS = re.compile(r"\x1b\[[0-9;]*m")


def execute(path: Path) -> nbformat.NotebookNode:
    """Run a notebook in a fresh kernel of this Python, in its own folder.

    Args:
        path: The notebook, which is not changed.

    Returns:
        The notebook with its outputs, without times and other traces of this run.

    Raises:
        ValueError: A cell failed, warned or took too long; the message names it.
    """
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(
        notebook, timeout=CELL_SECONDS, resources=resources, record_timing=False, coalesce_streams=True
    )
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        raise ValueError(f"{path.name}: {COLORS.sub('', str(error)).strip()}") from None
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        warnings = [output.text for output in cell.outputs if output.get("name") == "stderr"]
        if warnings:
            raise ValueError(f"{path.name}, cell {cell.id} warns: {''.join(warnings).strip()}")
        # Progress bars leave empty lines behind.
        cell.outputs = [output for output in cell.outputs if output.get("text", "text").strip()]
    return notebook


def pictures(notebook: nbformat.NotebookNode) -> dict[str, bytes]:
    """Return the PNG of each cell whose metadata name a picture, by that name."""
    return {
        cell.metadata["picture"]: base64.b64decode(output.data["image/png"])
        for cell in notebook.cells
        if "picture" in cell.metadata
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    }


def write(path: Path, content: bytes) -> None:
    """Write a file that replaces `path` in one step; its folder is created if it does not exist."""
    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_bytes(content)
    unfinished.replace(path)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 if a notebook fails, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python docs/execute_notebooks.py", description=__doc__.splitlines()[0])
    parser.add_argument("--language", nargs="+", choices=NOTEBOOKS, default=list(NOTEBOOKS), help="default: both")
    parser.add_argument("--check", action="store_true", help="run them, but write nothing")
    args = parser.parse_args(argv)
    try:
        executed = {}
        for language in args.language:
            begin = time.perf_counter()
            executed[language] = execute(DOCS / NOTEBOOKS[language])
            print(f"{NOTEBOOKS[language]}: {time.perf_counter() - begin:.0f} seconds", flush=True)
    except ValueError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted; nothing was written", file=sys.stderr)
        return 130
    if not args.check:
        for language, notebook in executed.items():
            write(DOCS / NOTEBOOKS[language], (nbformat.writes(notebook) + "\n").encode())
            for name, png in pictures(notebook).items() if language == "en" else ():
                write(DOCS / "pictures" / f"{name}.png", png)
    return 0


if __name__ == "__main__":
    sys.exit(main())
