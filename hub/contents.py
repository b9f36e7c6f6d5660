"""The files of a published folder: what belongs to a model or to a page on the Hub, by name."""

import re
from importlib.util import find_spec
from pathlib import Path

# A sample of the model, and its piano roll.
SAMPLE, PICTURE = "sample.mid", "sample.png"

# Weights are safetensors, never pickles. Code is that of the two packages, by their files' names.
BELONGS = re.compile(
    r"(config|generation_config|tokenizer_config|special_tokens_map|added_tokens|miditok)\.json"
    r"|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|README\.md|sample\.(mid|png|wav|mp3)"
)
CODE = {
    path.name
    for package in ("modeling_music_tx", "tokenization")
    for path in Path(find_spec(package).origin).parent.glob("*.py")
    if path.name != "__init__.py"
}


# What `hub.web` writes: a page, the constants of its model, and the model's program.
CONSTANTS = "model.json"
PAGE = ("index.html", "main.js", "worker.js", "style.css", "licenses.txt", "README.md", CONSTANTS)
PAGE += ("ort/ort-wasm-simd-threaded.mjs", "ort/ort-wasm-simd-threaded.wasm")
BELONGS_TO_PAGE = re.compile(
    "|".join(map(re.escape, PAGE)) + r"|decoder(\.int8)?\.onnx|samples/([A-G]s?\dv\d+|rel\d+)\.mp3"
)


def is_page(folder: Path) -> bool:
    """Whether a folder is one that `hub.web` has written."""
    return (folder / CONSTANTS).is_file()


def page_files(folder: Path) -> tuple[list[str], list[str]]:
    """Split the files of a page's folder, those in its folders included, as `published_files` does."""
    belong, others = [], []
    for path in sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()):
        name = path.relative_to(folder).as_posix()
        (belong if BELONGS_TO_PAGE.fullmatch(name) and not path.is_symlink() else others).append(name)
    return belong, others


def published_files(folder: Path) -> tuple[list[str], list[str]]:
    """Split the entries of a folder into those that are published and those that are not.

    Args:
        folder: An existing folder.

    Returns:
        The names of the files that belong to a model, and the names of everything else: other files, folders, and
        symbolic links, whose targets may be anything.
    """
    belong, others = [], []
    for path in sorted(folder.iterdir()):
        is_known = path.name in CODE or BELONGS.fullmatch(path.name)
        (belong if is_known and path.is_file() and not path.is_symlink() else others).append(path.name)
    return belong, others
