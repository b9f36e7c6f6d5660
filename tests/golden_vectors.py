"""Golden vectors for the page: what Python encodes, decodes, masks, draws and generates, for web/test to compare with.

    python -m tests.golden_vectors web/test/golden [--seed 0] [--midi FOLDER_OR_ZIP]

`make test-web` runs it before the tests in JavaScript. With `--midi` the ids of real files are written too.
"""

import argparse
import base64
import json
import math
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from evaluation.loading import load_model, load_model_tokenizer
from hub.web import write_page
from tests.conftest import _make_score
from tests.tiny_models import save_model
from tokenization import MusicTxTokenizer, PerformanceWithControls, generate_music, piano_logits_processors
from tokenization.grammar import spans_of
from tokenization.infill_grammar import Gap, InfillGrammar
from tokenization.midi_reader import MIDI_SUFFIXES
from tokenization.performance import NOTE_OFF, events_to_notes
from tokenization.repetition import LoopBreaker

# Prefixes whose masks are compared, for each model.
PREFIXES = 10_000


def mask_text(allowed: np.ndarray) -> str:
    """A mask as hexadecimal digits, the lowest id in the lowest bit of the first byte."""
    return np.packbits(allowed, bitorder="little").tobytes().hex()


class Mulberry32:
    """The generator of web/src/engine/sampling.js."""

    def __init__(self, seed: int):
        self.state = seed % 2**32

    def bits(self) -> int:
        self.state = (self.state + 0x6D2B79F5) % 2**32
        bits = self.state
        bits = (bits ^ bits >> 15) * (bits | 1) % 2**32
        bits ^= (bits + (bits ^ bits >> 7) * (bits | 61) % 2**32) % 2**32
        return bits ^ bits >> 14

    def next(self) -> float:
        return ((self.bits() >> 5) * 2**26 + (self.bits() >> 6)) / 2**53


def draw(scores: np.ndarray, temperature: float, top_p: float, min_p: float, random: Mulberry32) -> int:
    """Draw a token as Transformers' warpers leave them, in double precision."""
    weights = np.exp((scores - scores.max()) / temperature)
    order = np.lexsort((np.arange(len(weights)), weights))
    order = order[weights[order] > 0]
    kept = order
    if top_p < 1:
        is_left_out = weights[order].cumsum() <= (1 - top_p) * weights[order].sum()
        is_left_out[-1] = False
        kept = order[~is_left_out]
    kept = kept[weights[kept] >= min_p]
    rest = random.next() * weights[kept].sum()
    for token in kept[::-1]:
        rest -= weights[token]
        if rest < 0:
            return int(token)
    return int(kept[0])


def files(tokenizer: MusicTxTokenizer, random: np.random.Generator) -> Iterator[dict]:
    """MIDI files that are made here, with their ids or none where they are refused."""
    for index in range(60):
        score = _make_score(
            int(random.integers(1 << 30)),
            seconds=float(random.uniform(1, 40)),
            pedal=index % 3 > 0,
            tempo_changes=index % 2 > 0,
            tracks=1 + index % 4,
            pitches=range(60, 66) if index % 5 == 0 else range(30, 100),
        )
        midi = score.dumps_midi()
        if index % 4 == 3:  # bytes changed, cut out or cut off
            midi = bytearray(midi)
            at = int(random.integers(14, len(midi)))
            midi[at : at + int(random.integers(0, 3))] = bytes(
                random.integers(0, 256, int(random.integers(0, 3))).tolist()
            )
            midi = bytes(midi[: len(midi) - int(random.integers(0, 2)) * int(random.integers(0, 40))])
        yield file(tokenizer, f"made {index}", midi)


def file(tokenizer: MusicTxTokenizer, name: str, midi: bytes) -> dict:
    """One file with its ids, or with what is wrong with it."""
    row = {"name": name, "midi": base64.b64encode(midi).decode()}
    try:
        return row | {"ids": tokenizer(midi)["input_ids"]}
    except ValueError as error:
        return row | {"error": str(error)}


def real_files(tokenizer: MusicTxTokenizer, source: Path) -> Iterator[dict]:
    """The files of a folder or of a zip archive."""
    if source.is_dir():
        for path in sorted(path for path in source.rglob("*") if path.is_file()):
            yield file(tokenizer, path.name, path.read_bytes())
        return
    with zipfile.ZipFile(source) as archive:
        for name in archive.namelist():
            if name.lower().endswith(MIDI_SUFFIXES):
                yield file(tokenizer, Path(name).name, archive.read(name))


def decoded(tokenizer: MusicTxTokenizer, random: np.random.Generator) -> Iterator[dict]:
    """Random ids with their notes: milliseconds of start and length, pitch and velocity."""
    for _ in range(50):
        ids = random.integers(0, len(tokenizer), 300)
        score = tokenizer.to_score(ids)
        notes = [[n.time, n.duration, n.pitch, n.velocity] for track in score.tracks for n in track.notes]
        yield {"ids": ids.tolist(), "notes": sorted(notes)}


def walks(tokenizer: MusicTxTokenizer, random: np.random.Generator) -> Iterator[dict]:
    """Random walks through the grammar with the mask at every prefix; some steps are against the rules."""
    known = {"composer": "chopin", "density": [[0, 3], [20, 12]], "loudness": "planned", "note_length": 0.4}
    variants = [
        {},
        {"pitch_range": (40, 60), "max_polyphony": 3},
        {"close_after_seconds": 20.0},
        {"max_note_seconds": None, "max_rest_seconds": None, "pitch_range": None},
    ]
    length, size = 250, len(tokenizer)
    for index in range(PREFIXES // length):
        rules = dict(variants[index % len(variants)])
        controls = {}
        if tokenizer.attributes and index % 3:
            names = random.permutation(list(known))[: int(random.integers(1, 5))]
            controls = {str(name): known[name] for name in names}
        prompt = int(random.integers(1, 40))
        *_, grammar, _ = piano_logits_processors(tokenizer, prompt_length=prompt, controls=controls, **rules)
        ids, masks = [tokenizer.bos_token_id], []
        for _ in range(length):
            row = torch.tensor([ids])
            allowed = torch.isfinite(grammar(row, torch.zeros(1, size)))[0].numpy()
            masks.append(mask_text(allowed))
            wild = random.random() < 0.02
            candidates = np.arange(3, size) if wild else np.flatnonzero(allowed)
            if ids[-1] == tokenizer.eos_token_id:
                break
            ids.append(int(random.choice(candidates)))
        yield {"rules": rules, "controls": controls, "prompt": prompt, "ids": ids, "masks": masks}


def feedback(tokenizer: MusicTxTokenizer, random: np.random.Generator) -> Iterator[dict]:
    """Random well-formed ids with what the feedback adds to every score, after some of them."""
    if not tokenizer.attributes:
        return
    for index in range(12):
        density = 7 if index < 6 else "planned"
        wanted = {"density": density, "loudness": [[0, 40], [15, 90]], "note_length": "planned"}
        controls = {name: wanted[name] for name in list(wanted)[index % 3 :]}
        prompt, ids, shifts = int(random.integers(1, 40)), [tokenizer.bos_token_id], []
        keeps, _, grammar, _ = piano_logits_processors(tokenizer, prompt_length=prompt, controls=controls)
        for _ in range(160):
            row, zeros = torch.tensor([ids]), torch.zeros(1, len(tokenizer))
            shifts.append(keeps(row, zeros)[0].tolist() if len(ids) % 16 == 0 else None)
            ids.append(int(random.choice(np.flatnonzero(torch.isfinite(grammar(row, zeros))[0].numpy()))))
            if ids[-1] == tokenizer.eos_token_id:
                break
        yield {"controls": controls, "prompt": prompt, "ids": ids, "shifts": shifts}


def forgotten(tokenizer: MusicTxTokenizer, random: np.random.Generator) -> Iterator[dict]:
    """Music in which keys are left out of releases, with what is added to their NoteOffs, after some of its ids."""
    off = spans_of(tokenizer)[NOTE_OFF]
    for _ in range(12):
        score = _make_score(int(random.integers(1 << 30)), seconds=15, pedal=True)
        ids = tokenizer(score)["input_ids"]
        ids = [id for id in ids if not (off.start <= id < off.stop and random.random() < 0.2)][:600]
        prompt, raised = int(random.integers(1, 100)), []
        forgotten_keys, *_ = piano_logits_processors(tokenizer, prompt_length=prompt)
        for length in range(1, len(ids) + 1):
            added = forgotten_keys(torch.tensor([ids[:length]]), torch.zeros(1, len(tokenizer)))[0]
            raised.append({int(id): float(added[id]) for id in added.nonzero().flatten()} if length % 8 == 0 else None)
        yield {"prompt": prompt, "ids": ids, "raised": raised}


def loops(tokenizer: MusicTxTokenizer, random: np.random.Generator) -> Iterator[dict]:
    """Notes that repeat, with the keys that the loop breaker lowers at the end."""
    for index in range(30):
        figure = random.integers(0, 128, int(random.integers(1, 70)))
        keys = np.concatenate([random.integers(0, 128, 40), np.tile(figure, 260 // len(figure) + 1)])
        keys = keys[: 120 + 7 * index]
        noisy = random.random(len(keys)) < 0.01
        keys = np.where(noisy, random.integers(0, 128, len(keys)), keys)
        ids = (tokenizer.convert_tokens_to_ids("NoteOn_0") + keys).tolist()
        lowered = LoopBreaker(tokenizer)(torch.tensor([ids]), torch.zeros(1, len(tokenizer)))[0] < 0
        yield {"ids": ids, "lowered": torch.nonzero(lowered).flatten().tolist()}


def draws(random: np.random.Generator) -> Iterator[dict]:
    """Scores, options and the tokens that a seed draws from them."""
    for seed in range(40):
        scores = np.where(random.random(60) < 0.2, -math.inf, random.normal(0, 3, 60)).round(4)
        temperature, top_p = float(random.uniform(0.5, 1.5)), float(random.choice([1.0, 0.98, 0.9, 0.5]))
        generator = Mulberry32(seed * 7919)
        min_p = float(random.choice([0.0, 0.02, 0.3]))
        tokens = [draw(scores, temperature, top_p, min_p, generator) for _ in range(20)]
        texts = [None if score == -math.inf else score for score in scores.tolist()]
        yield {
            "seed": seed * 7919,
            "scores": texts,
            "temperature": temperature,
            "topP": top_p,
            "minP": min_p,
            "tokens": tokens,
        }


def continuations(model, tokenizer: MusicTxTokenizer, random: np.random.Generator) -> Iterator[dict]:
    """Greedy continuations, across the end of the window too."""
    for index in range(3):
        prompt = tokenizer(_make_score(int(random.integers(1 << 30)), seconds=4 + 4 * index))["input_ids"]
        controls = {"density": 8, "loudness": "planned"} if tokenizer.attributes and index else {}
        (ids,) = generate_music(
            model, tokenizer, prompt, seconds=None, max_new_tokens=300, controls=controls or None, do_sample=False
        )
        yield {"prompt": prompt, "controls": controls, "ids": ids.tolist()}


def infills(model, tokenizer: MusicTxTokenizer, random: np.random.Generator, window: int) -> Iterator[dict]:
    """Gaps: the prompt, the masks along a random middle, and the whole piece with it and with a greedy middle."""
    if tokenizer.infill_ids is None:
        return
    for _ in range(12):
        score = _make_score(int(random.integers(1 << 30)), seconds=float(random.uniform(8, 20)))
        ids = tokenizer(score)["input_ids"]
        length = events_to_notes(tokenizer.miditok.ids_to_events(np.array(ids)))[1] / 100
        start = round(float(random.uniform(0, 0.8 * length)), 3)
        gap_at = (start, round(start + float(random.uniform(0.3, 4)), 3))
        row = {"ids": ids, "gap": gap_at}
        try:
            gap = Gap(ids, tokenizer, *gap_at, window)
        except ValueError as error:
            yield row | {"error": str(error)}
            continue
        grammar, written, masks = (
            InfillGrammar(tokenizer, gap, 40, pitch_range=(21, 108), max_note_seconds=10.0),
            [],
            [],
        )
        while len(written) < 400:
            row_ids = torch.tensor([[*gap.prompt.tolist(), *written]])
            allowed = torch.isfinite(grammar(row_ids, torch.zeros(1, len(tokenizer))))[0].numpy()
            masks.append(mask_text(allowed))
            written.append(int(random.choice(np.flatnonzero(allowed))))
            if written[-1] == tokenizer.infill_ids.end:
                break
        filled = gap.fill([*gap.prompt.tolist(), *written]).tolist()
        (greedy,) = generate_music(model, tokenizer, ids, infill=gap_at, do_sample=False)
        row |= {"prompt": gap.prompt.tolist(), "written": written, "masks": masks, "filled": filled}
        yield row | {"greedy": greedy.tolist()}


def write_vectors(folder: Path, seed: int, midi: Path | None) -> None:
    """Write a page's model and its vectors for a model with controls and for one without."""
    for name, encoding in (("plain", None), ("controls", PerformanceWithControls())):
        random = np.random.default_rng(seed)
        tokenizer = MusicTxTokenizer() if encoding is None else MusicTxTokenizer.from_miditok(encoding)
        window = 512
        with tempfile.TemporaryDirectory() as model_folder:
            # Weights large enough that the most likely token stands out.
            shape = {"num_hidden_layers": 2, "initializer_range": 0.4, "max_relative_distance": 96}
            shape["value_residual"] = encoding is not None
            save_model(Path(model_folder), tokenizer, sliding_window=window, **shape)
            write_page(model_folder, folder / name, model_only=True)
            model, tokenizer = load_model(model_folder).cpu().eval(), load_model_tokenizer(model_folder)
            vectors = {
                "files": [*files(tokenizer, random), *(real_files(tokenizer, midi) if midi and not encoding else ())],
                "decoded": list(decoded(tokenizer, random)),
                "walks": list(walks(tokenizer, random)),
                "feedback": list(feedback(tokenizer, random)),
                "forgotten": list(forgotten(tokenizer, random)),
                "loops": list(loops(tokenizer, random)),
                "draws": list(draws(random)),
                "continuations": list(continuations(model, tokenizer, random)),
                "infills": list(infills(model, tokenizer, random, window)),
            }
        (folder / name / "vectors.json").write_text(json.dumps(vectors), encoding="utf-8")
        print(f"{name}: {', '.join(f'{len(rows)} {kind}' for kind, rows in vectors.items())}")


if __name__ == "__main__":
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("folder", type=Path)
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--midi", type=Path, help="a folder or zip archive of real files")
    options = flags.parse_args()
    write_vectors(options.folder, options.seed, options.midi)
