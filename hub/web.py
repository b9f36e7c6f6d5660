"""Write the page that plays: `python -m hub.web checkpoints/maestro-small --output_dir site`.

The folder is a static page: any server of files will do, and nothing is sent anywhere. It holds the decoder as ONNX,
in single precision and in 8 bits if that costs at most `MAX_LOST_NATS`; `model.json` with the vocabulary and the
constants of grammar and reader; and what Node makes of `web/`: scripts, styles and samples. With `--model_only` it
holds no page, and no Node is needed.
"""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

from corpus.commands import run_command
from corpus.plain_text import printable
from hub import flags

if __name__ == "__main__":  # --help and mistakes are answered before imports that take seconds
    flags.web(__doc__).parse_args()

import yaml
from huggingface_hub import RepoCard
from yaml import YAMLError

from corpus.atomic_files import atomic_folder
from evaluation.loading import find_model, load_model, load_model_tokenizer
from hub.contents import CONSTANTS
from hub.decoder_program import (
    CHUNK,
    DecoderProgram,
    check_architecture,
    export_program,
    lost_nats,
    quantize_program,
)
from tokenization import (
    control_feedback,
    controls,
    forgotten_keys,
    grammar,
    infill_grammar,
    midi_reader,
    music_generation,
    performance,
    repetition,
)

WEB = Path(__file__).parents[1] / "web"

# The oldest Node that builds the page, as web/package.json says too.
NODE = 20

# A likelihood that is worse by less cannot be told from noise.
MAX_LOST_NATS = 0.01

PROGRAM, QUANTIZED = "decoder.onnx", "decoder.int8.onnx"


def page_constants(model, tokenizer, program: DecoderProgram, name: str) -> dict:
    """Collect what the page must know of a model, from the definitions that Python itself uses.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        program: Its program.
        name: What the page calls the model.

    Returns:
        An object for JSON; the names are those of the modules.

    Raises:
        ValueError: The vocabulary is not the plain Performance encoding.
    """
    defaults = model.generation_config
    infill_ids = tokenizer.infill_ids
    return {
        "name": name,
        "program": {
            "window": program.window,
            "chunk": CHUNK,
            "layers": program.num_layers,
            "heads": program.num_heads,
            "headDim": program.head_dim,
            "vocabulary": model.config.vocab_size,
        },
        "sampling": {
            "temperature": defaults.temperature or 1.0,
            "topP": defaults.top_p or 1.0,
            "minP": defaults.min_p or 0.0,
        },
        "tokens": tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))),
        "pad": tokenizer.pad_token_id,
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "events": grammar.events_of(tokenizer),
        "spans": {kind: [span.start, span.stop] for kind, span in grammar.spans_of(tokenizer).items()},
        "performance": _constants(
            performance,
            "STEPS_PER_SECOND MAX_SHIFT_STEPS NUM_PITCHES VELOCITIES_PER_BIN DEFAULT_VELOCITY NOTE_OFF NOTE_ON "
            "TIME_SHIFT VELOCITY MAX_STEPS BEFORE FOREVER UNKNOWN QUARTERS_PER_MINUTE TICKS_PER_QUARTER "
            "MILLISECONDS_PER_STEP",
        )
        | {"VELOCITY_OF_BIN": performance.VELOCITY_OF_BIN.tolist()},
        "grammar": _constants(
            grammar,
            "BEGIN END NOTHING CONTROL PREFIX CLOSING_STEPS CLOSING_REST_STEPS PIANO SEGMENT_STEPS RELEASED_KEYS",
        ),
        "repetition": _constants(repetition, "MAX_LAG MAX_REPEATED_NOTES PENALTY"),
        "generation": _constants(music_generation, "TOKENS_PER_SECOND SPARE_TOKENS"),
        "midi": _constants(
            midi_reader,
            "MAX_TRACKS MAX_BYTES NOTE_OFF NOTE_ON CONTROLLER PROGRAM_CHANGE PITCH_BEND SYSEX SYSEX_CONTINUED META "
            "META_END_OF_TRACK META_TEMPO DRUM_CHANNEL DEFAULT_TEMPO SUSTAIN_PEDAL ALL_SOUND_OFF "
            "RESET_ALL_CONTROLLERS ALL_NOTES_OFF PEDAL_DOWN PEDALS FADING_SECONDS UNDEFINED",
        )
        | {"DATA_BYTES": midi_reader.DATA_BYTES.tolist()},
        "controls": [
            dataclasses.asdict(attribute)
            | {"option": attribute.option, "isNumber": attribute.is_number, "span": [span.start, span.stop]}
            for attribute, span in zip(tokenizer.attributes, tokenizer.control_spans, strict=True)
        ],
        "control": _constants(controls, "UNSTATED PLANNED OFF DEFAULT_CONTROLS"),
        "feedback": _constants(
            control_feedback,
            "DENSITY_RATE LOUDNESS_RATE NOTE_LENGTH_RATE VELOCITY_UNIT LIMIT LEAST_PLANNED ATTRIBUTES",
        ),
        "forgotten": _constants(forgotten_keys, "RATE"),
        "infill": None
        if infill_ids is None
        else infill_ids._asdict()
        | _constants(infill_grammar, "SPARE_TIMES TOKENS_PER_SECOND MIN_CONTEXT_TOKENS DEFAULT_BIN"),
    }


def _constants(module, names: str) -> dict:
    return {name: getattr(module, name) for name in names.split()}


# The card of a Space. The headers isolate the page, so that the engine may use threads.
SPACE_CARD = """---
{data}
---

# {title}

A page that plays the piano with you: play a few notes and pause, and the model goes on. It runs in the visitor's
browser. Made with `python -m hub.web`.

The recordings of the piano are the Salamander Grand Piano V3 by Alexander Holm, CC BY 3.0.
"""
HEADERS = {
    "cross-origin-embedder-policy": "require-corp",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "cross-origin",
}


def card_of(model: Path) -> dict:
    """Return what a model's card says of its license and its data sets; empty without a card."""
    try:
        data = RepoCard.load(model / "README.md").data.to_dict()
    except (OSError, ValueError, YAMLError):
        return {"license": None, "datasets": []}
    datasets = data.get("datasets") or []
    return {"license": data.get("license"), "datasets": [datasets] if isinstance(datasets, str) else list(datasets)}


def write_card(folder: Path, constants: dict) -> None:
    """Write the card with which a page becomes a Space."""
    title = f"Play with {constants['name']}"
    data = {"title": title, "emoji": "🎹", "sdk": "static", "app_file": "index.html", "pinned": False}
    data |= {"colorFrom": "blue", "colorTo": "yellow", "short_description": "A piano model that answers what you play"}
    data |= {name: value for name, value in constants["card"].items() if value} | {"custom_headers": HEADERS}
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True).strip()
    (folder / "README.md").write_text(SPACE_CARD.format(data=text, title=title), encoding="utf-8")


def write_model(name: str, folder: Path, window: int | None = None) -> dict:
    """Write what a page needs of a model.

    Args:
        name: The model: a folder, or `user/name` on the Hub.
        folder: An existing folder.
        window: Tokens that the model sees at once, if not those that it was trained with.

    Returns:
        What was written: the names of the programs with their sizes, and what 8 bits cost.

    Raises:
        ValueError: There is no such model, or one of another architecture.
    """
    model, tokenizer = load_model(name).cpu().eval(), load_model_tokenizer(name)
    try:
        check_architecture(model)
        program = DecoderProgram(model, window)
        source = find_model(name).resolve()
        constants = page_constants(model, tokenizer, program, source.name if Path(name).is_dir() else name)
        constants["card"] = card_of(source)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    export_program(program, folder / PROGRAM)
    quantize_program(folder / PROGRAM, folder / QUANTIZED)
    lost = lost_nats(folder / PROGRAM, folder / QUANTIZED, tokenizer.bos_token_id)
    if lost > MAX_LOST_NATS:
        (folder / QUANTIZED).unlink()
    chosen = folder / (QUANTIZED if lost <= MAX_LOST_NATS else PROGRAM)
    constants["program"] |= {"file": chosen.name, "bytes": chosen.stat().st_size, "lostNats": lost}
    write_card(folder, constants)
    (folder / CONSTANTS).write_text(json.dumps(constants, separators=(",", ":")), encoding="utf-8")
    return constants["program"]


def build_page(web: Path = WEB) -> Path:
    """Let Node make the page, and return its folder.

    Args:
        web: The folder of its sources.

    Raises:
        ValueError: Node is missing or too old, or it failed.
    """
    node, npm = shutil.which("node"), shutil.which("npm")
    version = _run([node, "--version"], web).stdout.strip() if node else ""
    if not npm or not version.startswith("v") or int(version[1:].partition(".")[0]) < NODE:
        found = f"found {version}" if version else "found none"
        raise ValueError(f"the page is built by Node {NODE} or newer with npm ({found}); install it, or --model_only.")
    steps = [["ci", "--no-progress"]] if not (web / "node_modules" / ".package-lock.json").is_file() else []
    for step in [*steps, ["run", "build"]]:
        done = _run([npm, *step], web)
        if done.returncode:
            said = " ".join((done.stderr or done.stdout).split())[-500:]
            raise ValueError(f"npm {' '.join(step)} failed in {web}: {said}")
    return web / "dist"


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def write_page(name: str, output_dir: Path, window: int | None = None, model_only: bool = False) -> str:
    """Write the folder of a page; it replaces the one that is there.

    Args:
        name: The model: a folder, or `user/name` on the Hub.
        output_dir: The folder to write.
        window: As for `write_model`.
        model_only: Leave out the page.

    Returns:
        What was written, in a line.

    Raises:
        ValueError: The model or Node is not as needed, or `output_dir` holds something else.
    """
    if output_dir.exists() and any(output_dir.iterdir()) and not (output_dir / CONSTANTS).is_file():
        raise ValueError(f"{output_dir} holds files that are no page; give another --output_dir.")
    page = None if model_only else build_page()
    with atomic_folder(output_dir) as folder:
        if page is not None:
            shutil.copytree(page, folder, dirs_exist_ok=True)
        chosen = write_model(name, folder, window)
    lost = f"8 bits cost {chosen['lostNats']:.4f} nats per token"
    return f"{output_dir}: {chosen['file']}, {chosen['bytes'] / 1e6:.1f} MB ({lost})"


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for a mistake of the user, 130 after Ctrl-C."""
    parser = flags.web(__doc__)
    args = parser.parse_args(argv)
    if args.window is not None and args.window < 2 * CHUNK:
        parser.error(f"--window ({args.window}) must be at least {2 * CHUNK}.")

    def write():
        print(printable(write_page(args.folder, args.output_dir, args.window, args.model_only)))

    return run_command("hub.web", write)


if __name__ == "__main__":
    sys.exit(main())
