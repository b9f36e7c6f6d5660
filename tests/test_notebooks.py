"""The two notebooks in docs/ have the same code, are stored as they ran, and tell right answers from wrong ones.

`docs/execute_notebooks.py --check` runs them; `make test-notebooks` does both.
"""

import base64
import itertools
import json
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
ENGLISH, SPANISH = "annotated_music_transformer.ipynb", "transformer_musical_anotado.ipynb"
NOTEBOOKS = {name: json.loads((DOCS / name).read_text(encoding="utf-8")) for name in (ENGLISH, SPANISH)}

# Beginnings of paths of the machine that ran a notebook.
PATHS = re.compile(r"(?<![\w.:/])(/(?:tmp|home|root|work|usr|opt|var|Users|content|private)/|[A-Za-z]:\\)")

# Plausible mistakes: each must be told from a right answer.
WRONG_ANSWERS = {
    1: [
        "lambda message: 'down' if message[0] >> 4 == 9 else 'up' if message[0] >> 4 == 8 else 'other'",
        "lambda message: {0x90: 'down', 0x80: 'up'}.get(message[0], 'other')",
    ],
    2: [
        "lambda seconds: [f'TimeShift_{round(100 * seconds)}']",
        "lambda seconds: ['TimeShift_100'] * int(seconds) + [f'TimeShift_{round(100 * (seconds % 1))}']",
        "lambda seconds: ['TimeShift_100'] * (int(100 * seconds) // 100)"
        " + [f'TimeShift_{int(100 * seconds) % 100}'] * (int(100 * seconds) % 100 > 0)",
        "lambda seconds: ['TimeShift_100'] * (math.ceil(100 * seconds) // 100)"
        " + [f'TimeShift_{math.ceil(100 * seconds) % 100}'] * (math.ceil(100 * seconds) % 100 > 0)",
    ],
    3: [
        "lambda tokens: sum(t.startswith('NoteOn') for t in tokens) - sum(t.startswith('NoteOff') for t in tokens)",
        "lambda tokens: len({t for t in tokens if t.startswith('NoteOn')})",
    ],
    4: [
        "lambda x: x.mean(0).expand_as(x)",
        "lambda x: x.cumsum(0)",
        "lambda x: x.cumsum(0) / len(x)",
        "lambda x: x.cumsum(1) / torch.arange(1, x.shape[1] + 1)",
    ],
    5: [
        "lambda distance, rows: rows - 1 - distance",
        "lambda distance, rows: min(distance, rows - 1)",
        "lambda distance, rows: max(rows - distance, 0)",
    ],
    6: [
        "lambda products: products",
        "lambda products: torch.roll(products, 1, 1)",
        "lambda products: torch.stack([row.roll(number + 1) for number, row in enumerate(products)])",
    ],
    7: [
        "lambda step, steps, warmup, fall: min(step / warmup, (steps - step) / fall, 1.0)",
        "lambda step, steps, warmup, fall: min((step + 1) / warmup, 1.0)",
        "lambda step, steps, warmup, fall: min((step + 1) / warmup, (steps - step - 1) / fall, 1.0)",
    ],
    8: [
        "lambda tokens, layers, heads, head_dim, window=None: layers * heads * head_dim * tokens * 4",
        "lambda tokens, layers, heads, head_dim, window=None: 2 * layers * heads * head_dim * (window or tokens) * 4",
        "lambda tokens, layers, heads, head_dim, window=None: 2 * layers * heads * head_dim * tokens * 4",
    ],
    9: [
        "lambda probabilities, p: probabilities >= p",
        "lambda probabilities, p: probabilities.cumsum(0) - probabilities < p",
        "lambda probabilities, p: torch.zeros(len(probabilities), dtype=torch.bool).index_fill(0,"
        " probabilities.argsort(descending=True)[probabilities.sort(descending=True).values.cumsum(0) <= p], True)",
    ],
    10: [
        "lambda melody, other: len(set(melody) & set(other))",
        "lambda melody, other: max((n for n in range(len(melody) + 1) for i in range(len(melody) - n + 1)"
        " for j in range(len(other) - n + 1) if melody[i : i + n] == other[j : j + n]), default=0)",
        "lambda melody, other: next((n for n in range(len(melody), 0, -1)"
        " if [m - melody[0] for m in melody[:n]] == [m - other[0] for m in other[:n]]), 0) if other else 0",
        # Steps in the same order, but not in a row.
        "lambda melody, other: 0 if not melody or not other else 1 + max(len(a)"
        " for n in range(len(melody)) for a in itertools.combinations(np.diff(melody).tolist(), n)"
        " if a in set(itertools.combinations(np.diff(other).tolist(), n)))",
    ],
}


def cells(name, kind):
    return [cell for cell in NOTEBOOKS[name]["cells"] if cell["cell_type"] == kind]


def source(cell):
    return "".join(cell["source"])


def texts(name):
    """What the cells of a notebook print or hand out as text, sounds and pictures left out."""
    for cell in cells(name, "code"):
        for output in cell["outputs"]:
            yield "".join(output.get("text", ""))
            for kind, data in output.get("data", {}).items():
                if kind.startswith("text/"):
                    yield re.sub(r"base64,[\w+/=\s]+", "", "".join(data))


def solutions(name):
    """The folded solutions of a notebook, by the number of the exercise."""
    page = "\n".join(source(cell) for cell in cells(name, "markdown"))
    found = re.findall(r"<summary>Solu(?:tion|ción) (\d+)</summary>\s+```python\n(.*?)```", page, re.DOTALL)
    return {int(number): code for number, code in found}


@pytest.fixture(scope="module")
def exercises():
    """The names that the cells of the exercises define."""
    names = {}
    for cell in cells(ENGLISH, "code"):
        if re.search(r"^def (grade|check_\d+)\(", source(cell), re.MULTILINE):
            exec(source(cell), names)
    return names


def test_both_languages_have_the_same_cells_of_code():
    assert [cell["cell_type"] for cell in NOTEBOOKS[ENGLISH]["cells"]] == [
        cell["cell_type"] for cell in NOTEBOOKS[SPANISH]["cells"]
    ]
    for english, spanish in zip(cells(ENGLISH, "code"), cells(SPANISH, "code"), strict=True):
        assert source(english) == source(spanish)
        assert (english["id"], english["metadata"]) == (spanish["id"], spanish["metadata"])


def test_every_text_is_written_in_both_languages():
    pairs = zip(cells(ENGLISH, "markdown"), cells(SPANISH, "markdown"), strict=True)
    assert [english["id"] for english, spanish in pairs if source(english) == source(spanish)] == []


def test_both_languages_explain_the_same_formulas_and_commands():
    for english, spanish in zip(cells(ENGLISH, "markdown"), cells(SPANISH, "markdown"), strict=True):
        for pattern in (r"\$\$.*?\$\$", r"```.*?```"):
            assert re.findall(pattern, source(english), re.DOTALL) == re.findall(pattern, source(spanish), re.DOTALL)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_stored_as_it_ran_from_top_to_bottom(name):
    counts = [cell["execution_count"] for cell in cells(name, "code")]
    assert counts == list(range(1, len(counts) + 1))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_picture_sound_and_line_that_a_cell_makes_is_stored(name):
    for cell in cells(name, "code"):
        last = source(cell).splitlines()[-1]
        kinds = {kind for output in cell["outputs"] for kind in output.get("data", {})}
        if last in ("plt.show()", "draw_curves()"):
            assert "image/png" in kinds, cell["id"]
        if last.startswith("listen("):
            html = ["".join(output["data"].get("text/html", "")) for output in cell["outputs"] if "data" in output]
            assert any("data:audio/" in text for text in html), cell["id"]
        if last.startswith(("print(", "grade(")):
            assert any(output["output_type"] == "stream" for output in cell["outputs"]), cell["id"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_no_cell_warns_fails_or_shows_a_path_of_the_machine_that_ran_it(name):
    outputs = [output for cell in cells(name, "code") for output in cell["outputs"]]
    assert [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"] == []
    assert [text for text in texts(name) if "Traceback" in text or "Warning" in text or PATHS.search(text)] == []


@pytest.mark.parametrize("text", ["saved to /var/x.mp3", "C:\\music", "(/home/me/a.mid)", "/opt/music"])
def test_a_path_is_found(text):
    assert PATHS.search(text)


@pytest.mark.parametrize("text", ["and/or", "https://arxiv.org/opt/a", "docs/opt/a.md", "4/4"])
def test_what_is_no_path_of_a_machine_is_let_through(text):
    assert not PATHS.search(text)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_takes_less_than_three_megabytes(name):
    assert (DOCS / name).stat().st_size < 3_000_000


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_a_notebook_links_to_exists(name):
    links = re.findall(r"\]\(([^)\s]+)\)", "\n".join(source(cell) for cell in cells(name, "markdown")))
    assert len(links) > 10
    assert [link for link in links if "://" not in link and not (DOCS / link.partition("#")[0]).exists()] == []


def test_the_pictures_of_the_page_of_ideas_are_those_of_the_english_notebook():
    shown = {
        cell["metadata"]["picture"]: base64.b64decode("".join(output["data"]["image/png"]))
        for cell in cells(ENGLISH, "code")
        if "picture" in cell["metadata"]
        for output in cell["outputs"]
        if "image/png" in output.get("data", {})
    }
    assert len(shown) == 4
    assert {path.stem: path.read_bytes() for path in (DOCS / "pictures").glob("*.png")} == shown
    page = (DOCS / "ideas.md").read_text(encoding="utf-8")
    assert [name for name in shown if f"](pictures/{name}.png)" not in page] == []


def test_there_are_ten_exercises_whose_solutions_are_the_same_in_both_languages():
    assert list(solutions(ENGLISH)) == list(range(1, 11))
    assert solutions(ENGLISH) == solutions(SPANISH)


@pytest.mark.parametrize("number", range(1, 11))
def test_an_exercise_is_not_solved_as_it_stands(exercises, number, capsys):
    exercises["grade"](number, exercises[f"exercise_{number}"], exercises[f"check_{number}"])
    assert capsys.readouterr().out == f"exercise {number}: not written yet\n"


@pytest.mark.parametrize("number", range(1, 11))
def test_the_solution_of_an_exercise_is_right(exercises, number, capsys):
    names = dict(exercises)
    exec(solutions(ENGLISH)[number], names)
    exercises["grade"](number, names[f"exercise_{number}"], exercises[f"check_{number}"])
    assert capsys.readouterr().out == f"exercise {number}: right\n"


@pytest.mark.parametrize(
    ("number", "answer"), [(number, answer) for number, answers in WRONG_ANSWERS.items() for answer in answers]
)
def test_a_wrong_answer_to_an_exercise_gets_a_hint(exercises, number, answer, capsys):
    exercises["grade"](number, eval(answer, {**exercises, "itertools": itertools}), exercises[f"check_{number}"])
    assert capsys.readouterr().out.startswith(f"exercise {number}: not right yet: ")


def test_an_answer_that_stops_is_named_with_its_error(exercises, capsys):
    exercises["grade"](2, lambda seconds: seconds["time"], exercises["check_2"])
    assert capsys.readouterr().out.startswith("exercise 2: it stopped with TypeError: ")
