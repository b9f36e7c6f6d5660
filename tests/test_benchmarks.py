"""The benchmarks run as documented, stop if the fast way is wrong, and report what they measured."""

import argparse
import multiprocessing
import time

import psutil
import pytest
import torch

from benchmarks import attention, decoding, generation, measure, report, training


@pytest.fixture(autouse=True)
def threads():
    """The benchmarks set the number of threads; other tests get theirs back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


QUICK = {
    attention: ["--backends", "blocked", "causal", "skewing", "bias", "--lengths", "96", "--dtypes", "fp32"],
    training: ["--dtypes", "fp32"],
    decoding: ["--batches", "1", "--lengths", "24", "32"],
    generation: ["--prompts", "1"],
}


def test_every_benchmark_runs_and_the_report_shows_what_it_measured(tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}{report.END}after\n")
    for benchmark, flags in QUICK.items():
        benchmark.main(["--quick", "--threads", "1", "--output_dir", str(tmp_path / "results"), *flags])
    assert "is 0.00x" not in capsys.readouterr().out

    report.main(["--room", str(tmp_path)])
    page = readme.read_text()
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    for shown in (
        "| fp32 | skewing |",
        "Llama's step",
        "ours fp32 dynamic / ours fp32 none",
        "the best draft",
        "plots/decoding-cpu.png",
    ):
        assert shown in page
    # One length alone, of attention here, makes no plot.
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["decoding-cpu.png"]

    report.main(["--room", str(tmp_path)])
    assert readme.read_text() == page


def test_a_busy_neighbour_keeps_a_core_busy_until_the_benchmark_ends():
    before = set(multiprocessing.active_children())
    measure.parsed(measure.parser("a benchmark"), ["--quick", "--threads", "1", "--neighbours", "1"], {})
    (neighbour,) = set(multiprocessing.active_children()) - before
    assert neighbour.daemon
    deadline = time.monotonic() + 600
    while psutil.Process(neighbour.pid).cpu_times().user < 0.5:
        assert neighbour.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    neighbour.terminate()


def test_quick_numbers_are_not_kept_unless_asked_for():
    assert measure.parsed(measure.parser(""), ["--quick"], quick={}).output_dir is None
    assert measure.parsed(measure.parser(""), [], quick={}).output_dir == measure.RESULTS


@pytest.mark.parametrize("mistake", ["output", "gradient"])
def test_a_wrong_attention_is_not_measured(monkeypatch, mistake):
    def wrong(query, key, value, embeddings):
        if mistake == "output":
            return attention.skewing(query, key, value, embeddings.flip(1))
        return attention.skewing(query, key, value, embeddings.detach() * 2 - embeddings)

    monkeypatch.setitem(attention.BACKENDS, "blocked", wrong)
    with pytest.raises(RuntimeError, match="blocked: the " + mistake):
        attention.check_small("blocked", torch.float32, "cpu", dim=16, length=33)


def test_a_wrong_cache_is_not_measured(monkeypatch):
    model = decoding.make_model("256", "cpu")
    static = decoding.StaticCache.get_query_offset
    monkeypatch.setattr(decoding.StaticCache, "get_query_offset", lambda cache, layer: static(cache, layer) - 1)
    with pytest.raises(RuntimeError, match="static cache"):
        decoding.check_cache("static", model, length=12)


def test_a_draft_that_changes_the_music_is_not_measured():
    model = decoding.make_model("256", "cpu")
    prompt = torch.tensor([[1, 5, 9, 5, 9]])
    likeliest = model.generate(prompt, do_sample=False, max_new_tokens=1)[0, -1].item()
    with pytest.raises(RuntimeError, match="censor changes what is generated"):
        generation.check_draft(model, prompt, "censor", {"suppress_tokens": [likeliest]})


def test_what_would_not_fit_is_left_out_and_said(monkeypatch, capsys):
    monkeypatch.setattr(measure, "memory_bytes", lambda device: 10_000)
    attention.main(["--quick", "--threads", "1", "--backends", "skewing", "--lengths", "40", "--dtypes", "fp32"])
    assert "| fp32 | skewing | left out |" in capsys.readouterr().out


def test_a_median_is_taken_over_turns_that_alternate():
    order = []
    seconds = {"a": iter([3.0, 1.0, 2.0]), "b": iter([9.0, 9.0, 9.0])}

    def run(name):
        order.append(name)
        return (next(seconds[name]),)

    result = measure.take_turns({name: lambda name=name: run(name) for name in seconds}, seconds=60, most=3)
    assert order == ["a", "b"] * 3
    assert result == {"a": (3, [2.0]), "b": (3, [9.0])}


def test_results_come_back_as_they_were_written(tmp_path):
    args = measure.parsed(measure.parser(""), ["--output_dir", str(tmp_path)], quick={})
    about, rows = {"date": "2026-01-02", "gpu": "none: a CPU"}, [{"name": "a", "ms": 1.5, "turns": 3, "note": None}]
    path = measure.write_results(args, "attention", about, rows)
    assert path.name == "attention-cpu-2026-01-02.csv"
    assert measure.read_results(path) == (about, rows)


def test_what_is_measured_beside_busy_processes_stands_beside_the_idle_numbers(tmp_path):
    readme, results = tmp_path / "README.md", tmp_path / "results"
    readme.write_text(f"{report.BEGIN}{report.END}")
    attention.main(["--quick", "--threads", "1", "--output_dir", str(results), *QUICK[attention]])
    (idle,) = results.iterdir()
    busy = argparse.Namespace(device="cpu", neighbours=1, output_dir=results)
    measure.write_results(busy, "attention", *measure.read_results(idle))
    report.main(["--room", str(tmp_path)])
    titles = [line for line in readme.read_text().splitlines() if line.startswith("### ")]
    assert [title.rpartition(", ")[0] for title in titles] == ["### attention.py, CPU", "### attention.py, busy CPU"]


def test_llama_has_as_many_parameters_as_ours():
    for width in (256, 512):
        ours, llama = (training.num_parameters(training.make_model(who, width, "cpu")) for who in ("ours", "llama"))
        assert 0.98 < ours / llama < 1.02
