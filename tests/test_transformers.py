"""The snippets of `docs/transformers.md` run on the shipped model and on a tiny one without a window."""

import re
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from packaging.version import Version

from hub.bundle import bundle
from modeling_music_tx import MusicTxConfig, MusicTxForCausalLM
from tokenization import MusicTxTokenizer

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "transformers.md").read_text(encoding="utf-8")

# Replacements in the snippets: the graph is the same, and no C++ compiler is needed.
TINY = {
    "torch.compile(model, fullgraph=True)": 'torch.compile(model, fullgraph=True, backend="aot_eager")',
    "mode=None,": 'mode=None, backend="aot_eager",',
}

SNIPPETS = [
    (PAGE[: block.start(1)].count("\n") + 1, block[1])
    for block in re.finditer(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
]


def reason_to_skip(snippet):
    """The requirement of a snippet that this machine lacks, or None."""
    if "# Needs a repository on the Hub" in snippet:
        return "test_hub_round_trip.py loads by revision from a Hub on this machine"
    if "# Needs a GPU" in snippet and not torch.cuda.is_available():
        return "there is no GPU"
    needs = re.search(r"Needs: (.*)", snippet)
    absent = [name for name in needs[1].split(", ") if not is_installed(name)] if needs else []
    return f"{', '.join(absent)} not installed" if absent else None


def is_installed(requirement):
    name, _, oldest = requirement.partition(">=")
    try:
        return find_spec(name) is not None and (not oldest or Version(version(name)) >= Version(oldest))
    except ModuleNotFoundError:  # the package around it
        return False


@pytest.fixture(scope="module", params=["tiny", "shipped"])
def reader(request, tmp_path_factory, make_score):
    """A folder with the files that the page uses, and the names that the snippets so far have defined."""
    folder = tmp_path_factory.mktemp("reader")
    make_score(seconds=30).dump_midi(folder / "performance.mid")
    torch.manual_seed(0)
    if request.param == "shipped":
        bundle(ROOT / "checkpoints" / "maestro-small", folder / "checkpoints" / "maestro-small")
        return folder, {}
    tokenizer = MusicTxTokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "max_relative_distance": 24}
    # Weights large enough that a relative term that is left out, or wrong, is seen in the logits.
    config = MusicTxConfig(vocab_size=len(tokenizer), num_attention_heads=2, initializer_range=0.2, **sizes)
    MusicTxForCausalLM(config).save_pretrained(folder / "checkpoints" / "maestro-small")
    tokenizer.save_pretrained(folder / "checkpoints" / "maestro-small")
    return folder, {}


@pytest.mark.parametrize(("line", "snippet"), SNIPPETS, ids=[f"line {line}" for line, _ in SNIPPETS])
def test_the_page_runs(reader, monkeypatch, line, snippet):
    if reason := reason_to_skip(snippet):
        pytest.skip(reason)
    for written, tiny in TINY.items():
        snippet = snippet.replace(written, tiny)
    folder, names = reader
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    exec(compile("\n" * (line - 1) + snippet, "docs/transformers.md", "exec"), names)


def test_no_tiny_setting_outlives_what_it_was_made_for():
    assert [said for said in TINY if said not in PAGE] == []


def test_attention_that_would_leave_the_relative_term_out_is_refused_however_it_came(reader):
    folder = reader[0] / "checkpoints" / "maestro-small"
    ids = torch.tensor([[1, 5, 9]])
    for implementation in ("flash_attention_2", "flash_attention_3", "paged|eager"):
        with pytest.raises(ValueError, match='"eager"'):
            MusicTxForCausalLM.from_pretrained(folder, attn_implementation=implementation)
    model = MusicTxForCausalLM.from_pretrained(folder)
    with pytest.raises(ValueError, match="paged"):
        model(ids, cache=object())  # what continuous batching gives to every layer
    # A kernel from the Hub is set without asking the model.
    model.config._attn_implementation_internal = "kernels-community/flash-attn2"
    with pytest.raises(ValueError, match="flash-attn2"):
        model(ids)


@pytest.mark.parametrize("implementation", ["blocked_relative", "sdpa", "eager"])
def test_a_boolean_mask_means_the_same_as_an_additive_one(reader, implementation):
    folder = reader[0] / "checkpoints" / "maestro-small"
    model = MusicTxForCausalLM.from_pretrained(folder, attn_implementation=implementation)
    ids = torch.tensor([[1, 5, 9, 7]])
    sees = torch.ones(4, 4, dtype=torch.bool).tril()[None, None]
    sees[..., 3, 1] = False
    added = torch.zeros(1, 1, 4, 4).masked_fill(~sees, torch.finfo(torch.float32).min)
    with torch.no_grad():
        torch.testing.assert_close(model(ids, attention_mask=sees).logits, model(ids, attention_mask=added).logits)
