"""The imports, processes and file names of the rooms are those that CONTRIBUTING.md and the Hub allow."""

import ast
import configparser
import importlib
import re
import sys
from importlib.metadata import packages_distributions
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
from transformers.dynamic_module_utils import get_imports, get_relative_imports

from modeling_music_tx import configuration_music_tx
from tokenization import tokenization_music_tx

ROOT = Path(__file__).parents[1]


class Room(NamedTuple):
    """A line of the section Imports in CONTRIBUTING.md."""

    imports: dict[str, str | None]  # what the room imports, and the one file that does if it is named
    processes: set[str]  # the modules that the room starts with `python -m`


def rooms_of(contributing: str) -> dict[str, Room]:
    """Read the lines `room -> import, import (in file.py); starts module as a process`."""
    block = contributing.partition("## Imports")[2].split("```")[1]
    rooms = {}
    for room, line in re.findall(r"^([\w.]+) +-> (.*)$", block, re.MULTILINE):
        imports, _, starts = line.partition(";")
        named = re.findall(r"([\w.]+)(?: \(in (\S+)\))?(?:, |$)", imports)
        processes = set(re.findall(r"starts ([\w.]+) as a process", starts))
        rooms[room.removesuffix(".py")] = Room({name: file or None for name, file in named}, processes)
    return rooms


ROOMS = rooms_of((ROOT / "CONTRIBUTING.md").read_text())  # a room without a line may not exist
UNIMPORTED = set(ROOMS.pop("nothing").imports)
EXEMPT = UNIMPORTED - set(ROOMS)  # benchmarks and tests import everything

# The rooms that go to the Hub, and what they may need on a user's machine.
HUB_BOUND = {name: set(ROOMS[name].imports) for name in ("modeling_music_tx", "tokenization")}

FILES = sorted(
    path.relative_to(ROOT)
    for path in [*ROOT.glob("*.py"), *(file for room in (*ROOMS, *EXEMPT) for file in (ROOT / room).rglob("*.py"))]
)
HUB_FILES = [path for path in FILES if path.parts[0] in HUB_BOUND and path.name != "__init__.py"]


def room_of(path: Path) -> str:
    """The room of a file: its first folder, or for a file at the root its own name."""
    return path.with_suffix("").parts[0]


def imports_of(source: str, optional: bool = True) -> set[tuple[int, str]]:
    """The imports of a source as (leading dots, dotted name), wherever they stand; or only those outside of `try:`."""
    tree = ast.parse(source)
    tries = [node for node in ast.walk(tree) if isinstance(node, ast.Try)]
    passed_over = set() if optional else {inner for node in tries for inner in ast.walk(node)}
    found = set()
    for node in set(ast.walk(tree)) - passed_over:
        if isinstance(node, ast.Import):
            found |= {(0, alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            # `from evaluation import rendering` reaches evaluation.rendering.
            found |= {(0, f"{node.module}.{alias.name}") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.level, node.module or ""))
    return found


def processes_of(source: str) -> set[str]:
    """The modules of our own that a source starts with `-m`: in a list of arguments, or in a command line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        arguments = getattr(node, "elts", getattr(node, "args", []))
        if isinstance(node, ast.List | ast.Tuple | ast.Call):
            texts = [argument.value if isinstance(argument, ast.Constant) else None for argument in arguments]
            found += [text for flag, text in pairwise(texts) if flag == "-m" and text]
        # Messages and help texts name commands too; these modules start them.
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[0] in ("os", "subprocess", "shlex"):
            found += re.findall(r"-m ([\w.]+)", ast.unparse(node))
    return {name for name in found if name.split(".")[0] in (*ROOMS, *EXEMPT)}


def ours(names: set[tuple[int, str]]) -> set[str]:
    """The absolute imports of our own packages and scripts."""
    return {name for level, name in names if level == 0 and name.split(".")[0] in (*ROOMS, *EXEMPT)}


def theirs(names: set[tuple[int, str]]) -> set[str]:
    """The packages of others, by their top name, less Python's own."""
    tops = {name.split(".")[0] for level, name in names if level == 0}
    return tops - sys.stdlib_module_names - set(ROOMS) - set(EXEMPT)


def forbidden(path: Path, source: str) -> set[str]:
    """The imports of a source that the line of its room does not allow."""
    imports = ROOMS[room_of(path)].imports
    allowed = {room_of(path), *(name for name, file in imports.items() if file in (None, path.name))}
    return {name for name in ours(imports_of(source)) if not any(f"{name}.".startswith(f"{row}.") for row in allowed)}


def declared(*extras: str) -> set[str]:
    """The distributions that setup.cfg asks for, as `normal` writes them."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = [setup["options"]["install_requires"], *(setup["options.extras_require"][extra] for extra in extras)]
    return {normal(re.split(r"[^\w.-]", line)[0]) for line in "\n".join(lines).split("\n") if line}


def normal(distribution: str) -> str:
    """The canonical name of a distribution."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def test_every_python_file_stands_in_a_room():
    found = {room_of(path.relative_to(ROOT)) for pattern in ("*.py", "*/*.py") for path in ROOT.glob(pattern)}
    assert found <= {*ROOMS, *EXEMPT}


def test_no_room_may_import_what_nothing_imports():
    assert not {name.split(".")[0] for room in ROOMS.values() for name in room.imports} & UNIMPORTED


@pytest.mark.parametrize("path", [path for path in FILES if room_of(path) in ROOMS], ids=str)
def test_a_file_imports_only_the_rooms_that_its_own_may(path):
    assert not forbidden(path, (ROOT / path).read_text())


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("tokenization/grammar.py", "import modeling_music_tx"),
        ("modeling_music_tx/late.py", "def late():\n    from tokenization.grammar import MusicGrammar"),
        ("corpus/prepare.py", "from evaluation import metrics"),
        ("evaluation/report.py", "import train"),
        ("evaluation/report.py", "import modeling_music_tx"),
        ("generate.py", "from evaluation import metrics"),
        ("train.py", "import hub.publish"),
        ("hub/card.py", "from tests.conftest import score"),
    ],
)
def test_an_import_against_the_arrows_is_seen(path, source):
    assert forbidden(Path(path), source)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_starts_the_processes_that_its_line_names(room):
    started = [processes_of((ROOT / path).read_text()) for path in FILES if room_of(path) == room]
    assert set().union(*started) == ROOMS[room].processes


@pytest.mark.parametrize(
    "source",
    [
        'subprocess.run([sys.executable, "-m", "hub.publish", folder])',
        'command = (python, "-m", "hub.publish")',
        'command += ["-m", "hub.publish"]',
        'os.execlp("python", "python", "-m", "hub.publish", folder)',
        'subprocess.run(f"{sys.executable} -m hub.publish {folder}", shell=True)',
        'command = shlex.split("python -m hub.publish")',
    ],
)
def test_a_process_that_a_source_starts_is_seen(source):
    assert processes_of(source) == {"hub.publish"}


def test_a_command_in_a_message_is_not_a_process():
    assert not processes_of('raise ValueError(f"{folder} has no card; write it with python -m hub.card.")')


def test_rendering_alone_is_open_to_generate():
    assert not forbidden(
        Path("generate.py"), "from evaluation.rendering import piano_roll\nfrom evaluation import rendering"
    )


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] in HUB_BOUND], ids=str)
def test_the_hub_bound_rooms_ask_little_of_a_users_machine(path):
    # What stands in `try:` is used where it is there.
    assert theirs(imports_of((ROOT / path).read_text(), optional=False)) <= HUB_BOUND[path.parts[0]]


@pytest.mark.parametrize("path", HUB_FILES, ids=str)
def test_a_hub_file_imports_its_siblings_in_the_one_form_that_is_copied(path):
    source = (ROOT / path).read_text()
    relative = {name for level, name in imports_of(source) if level}
    siblings = {file.stem for file in (ROOT / path).parent.glob("*.py")}
    # Neither `from . import x`, nor `..`, nor `.nested.x`, nor the package by its own name.
    assert {level for level, _ in imports_of(source)} <= {0, 1}
    assert relative <= siblings
    assert not ours(imports_of(source))


@pytest.mark.parametrize("path", HUB_FILES, ids=str)
def test_transformers_reads_the_same_imports_as_python(path):
    # Transformers finds imports by regular expressions over the raw text, in docstrings too.
    source = (ROOT / path).read_text()
    names = imports_of(source)
    assert set(get_imports(ROOT / path)) - sys.stdlib_module_names == theirs(imports_of(source, optional=False))
    assert set(get_relative_imports(ROOT / path)) == {name for level, name in names if level}


def test_hub_files_have_distinct_names_in_their_flat_folder():
    names = [path.name for path in HUB_FILES]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("path", [path for path in FILES if room_of(path) in ROOMS], ids=str)
def test_what_a_file_imports_is_declared_where_its_room_is_installed_from(path):
    # The wheel's own dependencies must do for the wheel; the rooms of the checkout may use every extra.
    extras = () if room_of(path) in HUB_BOUND else ("train", "audio", "plot", "hub", "web", "live", "finetune")
    distributions = packages_distributions()
    for package in theirs(imports_of((ROOT / path).read_text(), optional=False)):
        assert {normal(name) for name in distributions.get(package, [package])} & declared(*extras), package


@pytest.mark.parametrize("version", ["4.57.6", "5.19.0", "6.0.0"])
@pytest.mark.parametrize("module", [configuration_music_tx, tokenization_music_tx])
def test_with_a_transformers_that_it_does_not_know_the_import_says_which_it_does(monkeypatch, module, version):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    (known,) = re.findall("^transformers.*", setup["options"]["install_requires"], re.MULTILINE)
    monkeypatch.setattr("importlib.metadata.version", lambda package: version)
    with pytest.raises(ImportError, match=f"{known} is required .* but found transformers=={version}"):
        importlib.reload(module)
