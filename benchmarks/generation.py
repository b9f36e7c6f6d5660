"""Continuations by `generate()`: the speed of assisted decoding and of batches.

    python -m benchmarks.generation --corpus data/maestro
    python -m benchmarks.generation --corpus data/maestro --assistant runs/tiny

Prompts are the beginnings of validation pieces, spread evenly over the split; without a corpus the model generates
them. Each is continued by sampling:

- plain: token by token.
- lookup 2, 4, 8: prompt lookup drafts that many tokens, copied from an earlier continuation of the same three tokens
  (`prompt_lookup_num_tokens`).
- assistant: a smaller model drafts (`assistant_model`).
- batch 2 to 32: that many continuations of a prompt at once.

Before timing, greedy continuations with and without a draft are checked to be the same. Methods run in turns over the
prompts; the medians of their tokens/s are reported.
"""

import sys
import time
from functools import partial
from pathlib import Path
from statistics import median

import torch
from transformers import set_seed

from benchmarks import measure
from benchmarks.decoding import CHECKPOINT
from corpus.dataset import load_corpus
from modeling_music_tx import MusicTxForCausalLM

LOOKUPS = (2, 4, 8)
BATCHES = (2, 4, 8, 16, 32)


def make_prompts(model: MusicTxForCausalLM, corpus: Path | None, count: int, length: int) -> list[torch.Tensor]:
    """The beginnings of pieces, `[1, length]` each."""
    if corpus is None:
        set_seed(0)
        start = torch.full((count, 1), model.config.bos_token_id, device=model.device)
        sequences = model.generate(start, do_sample=True, min_length=length, max_length=length)
        return list(sequences.split(1))
    pieces = [ids for ids in load_corpus(corpus)["validation"]["input_ids"] if len(ids) >= length]
    chosen = (pieces[index * len(pieces) // count] for index in range(count))
    return [torch.as_tensor(ids[:length], device=model.device).long()[None] for ids in chosen]


def make_ways(assistant: MusicTxForCausalLM | None) -> dict[str, dict]:
    """The arguments of `generate()` for each method."""
    ways = {"plain": {}}
    ways |= {f"lookup {count}": {"prompt_lookup_num_tokens": count, "max_matching_ngram_size": 3} for count in LOOKUPS}
    if assistant is not None:
        ways["assistant"] = {"assistant_model": assistant}
    return ways | {f"batch {size}": {"num_return_sequences": size} for size in BATCHES}


def check_draft(model: MusicTxForCausalLM, prompt: torch.Tensor, name: str, way: dict, length: int = 32):
    """Check that the greedy continuation is the same with a draft as without."""
    with_draft, without = (
        model.generate(prompt, do_sample=False, max_new_tokens=length, **kwargs) for kwargs in (way, {})
    )
    if not torch.equal(with_draft, without):
        raise RuntimeError(f"{name} changes what is generated.")


def continue_music(model: MusicTxForCausalLM, prompt: torch.Tensor, new_tokens: int, seed: int, way: dict) -> tuple:
    """Continue a prompt.

    Returns:
        Tokens a second, of all continuations together, and tokens for each pass of the model and continuation.
    """
    passes = []
    hook = model.register_forward_pre_hook(lambda *_: passes.append(1))
    set_seed(seed)
    start = time.perf_counter()
    length = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
    music = model.generate(prompt, do_sample=True, top_p=0.95, top_k=0, **length, **way)
    seconds = time.perf_counter() - start
    hook.remove()
    made = music.shape[1] - prompt.shape[1]
    return music.shape[0] * made / seconds, made / len(passes)


def table(rows: list[dict]) -> str:
    """Tokens/s, absolute and relative to plain decoding."""
    plain = next(row["tokens_per_second"] for row in rows if row["way"] == "plain")
    body = (
        [
            row["way"],
            measure.short(row["tokens_per_second"]),
            f"{row['tokens_per_second'] / plain:.2f}",
            f"{row['tokens_per_pass']:.2f}",
        ]
        for row in rows
    )
    return measure.markdown(["", "tokens/s", "beside plain", "tokens per pass"], body)


def ratios(rows: list[dict]) -> list[str]:
    """The best draft."""
    speeds = {row["way"]: row["tokens_per_second"] for row in rows}
    best = max((way for way in speeds if not way.startswith(("plain", "batch"))), key=speeds.get)
    prompts = rows[0]["prompts"]
    return [f"{prompts} prompts: the best draft, {best}, has {speeds[best] / speeds['plain']:.2f}x the speed of none"]


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    flags = measure.parser(__doc__)
    flags.add_argument("--corpus", type=Path, help="prepared corpus, for prompts (default: the model generates them)")
    flags.add_argument("--assistant", type=Path, help="folder of a smaller model (default: none)")
    flags.add_argument("--prompts", type=int, default=20, help="number of prompts (default: %(default)s)")
    flags.add_argument("--prompt_length", type=int, default=512, help="tokens of each (default: %(default)s)")
    flags.add_argument("--new_tokens", type=int, default=128, help="tokens added to each (default: %(default)s)")
    args = measure.parsed(flags, argv, quick={"prompts": 2, "prompt_length": 24, "new_tokens": 8})

    # All methods without a window, whose cache keeps more than the window while drafts may be rejected.
    load = partial(MusicTxForCausalLM.from_pretrained, sliding_window=None)
    model = load(CHECKPOINT).eval().to(args.device)
    assistant = load(args.assistant).eval().to(args.device) if args.assistant else None
    prompts = make_prompts(model, args.corpus, args.prompts, args.prompt_length)
    ways = make_ways(assistant)
    for name, way in ways.items():
        if not name.startswith("batch"):
            check_draft(model, prompts[0], name, way)
    print("greedy continuations are the same with drafts", flush=True)
    measured = {name: [] for name in ways}
    for seed, prompt in enumerate(prompts):
        for name, way in ways.items():
            measured[name].append(continue_music(model, prompt, args.new_tokens, seed, way))
    rows = [
        {
            "way": name,
            "prompts": len(prompts),
            "prompt_length": args.prompt_length,
            "new_tokens": args.new_tokens,
            "tokens_per_second": measure.rounded(median(speed for speed, _ in results)),
            "tokens_per_pass": measure.rounded(median(tokens for _, tokens in results)),
        }
        for name, results in measured.items()
    ]
    path = measure.write_results(args, "generation", measure.machine(args), rows)
    measure.print_results(args, table(rows), ratios(rows), path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
