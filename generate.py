"""Generate piano music: a MIDI file, its sound and its piano roll for each sample.

    python generate.py                                      the shipped model plays by itself
    python generate.py --prompt mine.mid --num_samples 4    it continues the first ten seconds of a file in four ways
    python generate.py --seconds 3600 --stream              an hour of music, each note printed as soon as it is known

The model samples, the tokenizer reads and writes notes, the evaluation room plays and draws them: here are flags and
files. A user's mistake ends in one line and exit code 2 and leaves nothing half-written; Ctrl-C ends the music where
it is, and what there is of it is written.
"""

import argparse
import hashlib
import json
import math
import platform
import secrets
import shlex
import signal
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

SHIPPED_MODEL = Path(__file__).parent / "checkpoints" / "maestro-small"

# Beside each MIDI file lie its record and what --formats asks for.
AUDIO, PICTURES = ("wav", "flac", "mp3"), ("png", "svg")
SUFFIXES = tuple(f".{kind}" for kind in ("mid", "json", *PICTURES, *AUDIO))

# What the same seed gives the same bytes with, beside Python.
LIBRARIES = ("music-tx", "torch", "transformers", "miditok", "symusic", "matplotlib", "midirenderer", "soundfile")

# A second of MAESTRO is 40 tokens; a model that needs four times as many has lost its way.
TOKENS_PER_SECOND, SPARE_TOKENS = 160, 500


def fail(message):
    """End the program with one line on stderr and exit code 2."""
    print(f"generate.py: {' '.join(str(message).split())}", file=sys.stderr)
    raise SystemExit(2)


def within(kind, low, high):
    """Make an argparse type: a number of this kind between two bounds, both included."""

    def parse(text):
        try:
            number = kind(text)
        except ValueError:
            number = math.nan
        if not low <= number <= high:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text} is not {what} from {low} to {high}")
        return number

    return parse


def make_parser():
    """Describe the command line."""
    usage = "python generate.py [--prompt MIDI] [--seconds S] [--num_samples N] [options below]"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], usage=usage)
    parser.error = fail
    duration, default = within(float, 0.01, 86_400), "; %(default)s if not given"

    add = parser.add_argument_group("what is played").add_argument
    add("--model", default=str(SHIPPED_MODEL), help="folder, or user/name on the Hub; the shipped one if not given")
    add("--prompt", metavar="MIDI", help="file to continue; the model begins by itself if not given")
    add("--prompt_seconds", metavar="S", type=duration, default=10.0, help="how much of it is played" + default)
    add("--seconds", metavar="S", type=duration, default=30.0, help="how much music is made" + default)
    add("--ending", action="store_true", help="let the last notes end by themselves, a little after --seconds")
    add("--num_samples", metavar="N", type=within(int, 1, 1024), default=1, help="how many, in one batch" + default)

    add = parser.add_argument_group("how it is played").add_argument
    temperature, key = within(float, 0.01, 100), within(int, 0, 127)
    add("--temperature", metavar="T", type=temperature, default=1.0, help="tamer below 1, wilder above" + default)
    add("--top_k", metavar="K", type=within(int, 0, 1_000_000), default=0, help="keep so many tokens, 0 all" + default)
    add("--top_p", metavar="P", type=within(float, 0.01, 1), default=0.98, help="keep so much chance, 1 all" + default)
    add("--max_polyphony", metavar="N", type=within(int, 1, 128), help="most notes at once; no limit if not given")
    add("--max_note_seconds", metavar="S", type=duration, help="longest note; 10 if not given")
    add("--pitch_range", metavar=("LOW", "HIGH"), type=key, nargs=2, help="keys, 60 is C4; 21 108 if not given")
    add("--seed", type=within(int, 0, 2**32 - 1), help="the same seed, the same bytes; drawn if not given")

    add = parser.add_argument_group("while it is made").add_argument
    add("--stream", action="store_true", help="print each note as soon as it is known")
    add("--midi_port", metavar="NAME", help="play each note on a MIDI port, in time")

    add = parser.add_argument_group("what is written").add_argument
    add("--output_dir", metavar="DIR", type=Path, default=Path("samples"), help="folder for the files" + default)
    kinds, formats = (*AUDIO, *PICTURES), ["wav", "png"]
    add("--formats", nargs="*", choices=kinds, default=formats, help="beside the MIDI file; wav png if not given")
    add("--dark", action="store_true", help="draw on black")
    add("--soundfont", metavar="SF2", help="whose piano plays; $SOUNDFONT, or the best one found, if not given")
    add("--overwrite", action="store_true", help="replace files that are there")
    return parser


def parse_arguments(arguments=None):
    """Read the command line.

    Args:
        arguments: The words to read; those of the process when None.

    Returns:
        The options by name.
    """
    options = make_parser().parse_args(arguments)
    if options.num_samples > 1 and (options.stream or options.midi_port):
        fail(f"--num_samples {options.num_samples}: --stream and --midi_port follow one sample; leave it out.")
    if options.seed is None:
        options.seed = secrets.randbelow(100_000)
    return options


def exact_command(options):
    """Write the command that makes the same bytes again; where they lie does not matter to them."""
    parser, words = make_parser(), ["python", "generate.py"]
    for name, value in vars(options).items():
        if name in ("output_dir", "overwrite") or value == parser.get_default(name):
            continue
        words.append(f"--{name}")
        if value is not True:
            words += map(str, value if isinstance(value, list) else [value])
    return shlex.join(words)


def name_outputs(options):
    """Name the outputs, without suffix, and make sure that none of them is there already."""
    stems = [options.output_dir / f"sample-{options.seed}-{i + 1}" for i in range(options.num_samples)]
    for path in (stem.with_suffix(suffix) for stem in stems for suffix in SUFFIXES):
        if path.exists() and not options.overwrite:
            fail(f"{path} is there already; give --overwrite, another --seed or another --output_dir.")
    return stems


def find_model(name):
    """Find the folder of a model, here or on the Hub."""
    folder = Path(name)
    if name.count("/") == 1 and not folder.parent.is_dir():
        from huggingface_hub import snapshot_download

        # All files of one revision. Without a network this gives up at once; loading the files tries for a minute.
        try:
            folder = Path(snapshot_download(name))
        except (OSError, ValueError) as error:
            fail(f"{name} is no folder here and cannot be had from the Hub: {str(error).splitlines()[0]}")
    if not (folder / "config.json").is_file():
        fail(f"{name} holds no model; give a folder with a config.json in it, or user/name on the Hub.")
    return folder


def load(name, folder):
    """Load a model and its tokenizer from a folder; mistakes are told by the name that the user gave it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    # Imported for their entries in the Auto classes, too.
    import modeling_music_tx  # noqa: F401
    from tokenization import MusicTxTokenizer

    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder)
    # Whatever is wrong with a model's files comes as an exception of json, safetensors, huggingface_hub or torch.
    except Exception as error:
        fail(f"{name} cannot be loaded as a model: {error}")
    if not isinstance(tokenizer, MusicTxTokenizer):
        fail(f"{name} has a {type(tokenizer).__name__}; a model of music comes with a MusicTxTokenizer.")
    try:
        _ = tokenizer.token_seconds
    except ValueError as error:
        fail(f"{name} cannot be asked for seconds of music: {error}")
    return model.to(torch.accelerator.current_accelerator(check_available=True) or "cpu"), tokenizer


def read_prompt(options, tokenizer):
    """Read what the music begins with.

    Returns:
        Its ids `[T]`, which are BOS alone without a prompt.
    """
    import numpy as np

    if options.prompt is None:
        return np.array([tokenizer.bos_token_id])
    try:
        ids = np.array(tokenizer.encode(options.prompt))
    except (OSError, ValueError) as error:
        fail(f"the prompt cannot be read: {error}")
    # The sum of many hundredths strays from the grid, by less than half a step.
    return ids[tokenizer.token_seconds[ids].cumsum() < options.prompt_seconds + 0.005]


def find_sound(options):
    """Find a SoundFont that plays.

    Returns:
        Its path; None if no sound is asked for, or if there can be none here, and then a line has said why.
    """
    if not set(AUDIO) & set(options.formats):
        return None
    from symusic import Score

    from evaluation.rendering import find_soundfont, render_audio

    missing = [f"{name} is not installed" for name in ("midirenderer", "soundfile") if find_spec(name) is None]
    try:
        soundfont = find_soundfont(options.soundfont)
        if not missing and soundfont is not None:
            render_audio(Score(), soundfont)
            return soundfont
    except (OSError, ValueError) as error:
        fail(error)
    reason = (missing or ["there is no SoundFont"])[0]
    print(f"No sound: {reason}. To hear the music: pip install midirenderer soundfile pretty_midi", file=sys.stderr)
    return None


class Progress:
    """A streamer as `generate()` takes one, which draws a bar of the seconds of music made, all samples together."""

    def __init__(self, tokenizer, seconds, num_samples):
        from tqdm import tqdm

        self.token_seconds, self.seconds = tokenizer.token_seconds, seconds
        self.elapsed = None
        layout = "{percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s of music, {elapsed} gone, {remaining} to go"
        self.bar = tqdm(total=seconds * num_samples, bar_format=layout, leave=False)

    def put(self, ids):
        """Take the prompt first, and then one token of each sample at a time, `[B]`."""
        if self.elapsed is None:
            self.elapsed = 0.0
            return
        self.elapsed = self.elapsed + self.token_seconds[ids.numpy()]
        self.bar.update(self.elapsed.clip(max=self.seconds).sum() - self.bar.n)

    def end(self):
        """Take the bar away."""
        self.bar.close()


def make_streamer(options, tokenizer, unseen, port):
    """Choose what follows the music while it is made: notes as they come, or else a bar.

    Args:
        options: The options.
        tokenizer: The tokenizer.
        unseen: The part of the prompt that the model does not see, `[T]`.
        port: A `MidiPort`, or None.

    Returns:
        The streamer.
    """
    from evaluation.rendering import key_name
    from tokenization import MidiStreamer

    if not options.stream and port is None:
        return Progress(tokenizer, options.seconds, options.num_samples)
    before = tokenizer.token_seconds[unseen].sum()

    def hear(note):
        start, name = note.start_seconds + before, key_name(note.pitch)
        print(f"{start:9.2f} s  {name:<3} velocity {note.velocity:3}  {note.duration_seconds:5.2f} s", flush=True)

    return MidiStreamer(
        tokenizer, on_note=hear if options.stream else None, on_event=port and port.put, skip_prompt=True
    )


@contextmanager
def ctrl_c_noted():
    """Take note of a first Ctrl-C, in an event that it yields; a second one interrupts as ever."""
    noted = threading.Event()

    def note(number, frame):
        noted.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


def sample(options, model, tokenizer, prompt, port, stopped):
    """Let the model continue the prompt.

    Args:
        options: The options.
        model: The model.
        tokenizer: Its tokenizer.
        prompt: Ids to begin with, `[T]`.
        port: A `MidiPort` to play on meanwhile, or None.
        stopped: An event that ends it.

    Returns:
        The new ids of each sample, without padding, a list of `[N]`.
    """
    import torch
    from transformers import DynamicCache, set_seed

    from tokenization import PIANO, MaxSeconds, piano_logits_processors

    # A prompt longer than what the model sees at once is taken by its end.
    window = model.config.sliding_window or len(prompt)
    unseen, seen = prompt[:-window], prompt[-window:]
    ids = torch.tensor(seen[None], device=model.device)

    seconds = options.seconds
    given = {name: getattr(options, name) for name in ("max_polyphony", "max_note_seconds", "pitch_range")}
    rules = {name: value for name, value in given.items() if value is not None}
    if options.ending:
        rules["close_after_seconds"] = seconds
        seconds += rules.get("max_note_seconds", PIANO["max_note_seconds"])
    try:
        manners = piano_logits_processors(tokenizer, before=[unseen], prompt_length=len(seen), **rules)
        streamer = make_streamer(options, tokenizer, unseen, port)
    except ValueError as error:
        fail(error)

    # The prompt is read once, for all samples.
    cache = DynamicCache(config=model.config)
    if len(seen) > 1:
        with torch.no_grad():
            model(ids[:, :-1], past_key_values=cache, logits_to_keep=1)
        cache.batch_repeat_interleave(options.num_samples)
    set_seed(options.seed)
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        past_key_values=cache,
        do_sample=True,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        num_return_sequences=options.num_samples,
        max_new_tokens=most_tokens(seconds),
        logits_processor=manners,
        stopping_criteria=[
            MaxSeconds(tokenizer, seconds, len(seen)),
            lambda ids, scores: torch.full((len(ids),), stopped.is_set(), device=ids.device),
        ],
        streamer=streamer,
    )
    return [row[row != tokenizer.pad_token_id] for row in output[:, len(seen) :].cpu().numpy()]


def most_tokens(seconds):
    """Return how many tokens so much music may have."""
    return SPARE_TOKENS + math.ceil(TOKENS_PER_SECOND * seconds)


def describe(options, folder, number, ids, interrupted):
    """Write down how a sample came to be.

    Returns:
        Its record, as JSON takes it: the same for the same command.
    """
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[library] = version(library)
    record = {
        "command": exact_command(options),
        "sample": number,
        "seed": options.seed,
        "versions": versions,
        "weights": {path.name: sha256(path) for path in sorted(folder.glob("*.safetensors"))},
        "tokens": len(ids),
        "interrupted": interrupted,
    }
    if options.prompt is not None:
        record["prompt"] = {Path(options.prompt).name: sha256(options.prompt)}
    return record


def sha256(path):
    """Return a file's SHA-256, as `sha256sum` prints it."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def with_texts(midi, texts):
    """Put text events at the beginning of a MIDI file, which symusic does not.

    Args:
        midi: The bytes of the file.
        texts: A text for each event, shorter than 16 KiB.

    Returns:
        The bytes of the file with the events.
    """
    events = b""
    for text in (text.encode() for text in texts):
        # Seven bits to a byte, all but the last marked.
        length = bytes([len(text)]) if len(text) < 128 else bytes([len(text) >> 7 | 128, len(text) & 127])
        events += b"\x00\xff\x01" + length + text
    # The header chunk, then the first track's: four letters and four bytes of length each.
    track = 8 + int.from_bytes(midi[4:8]) + 8
    length = int.from_bytes(midi[track - 4 : track]) + len(events)
    return midi[: track - 4] + length.to_bytes(4) + events + midi[track:]


def write(options, stem, folder, score, record, prompt_seconds, soundfont):
    """Write the files of one sample, each into a folder aside before it is moved to its name.

    Returns:
        The suffixes of the files written.
    """
    from evaluation.rendering import DARK, LIGHT, piano_roll, render_audio, write_audio

    written = []

    def place(suffix, write):
        unfinished = folder / (stem.name + suffix)
        write(unfinished)
        unfinished.replace(stem.with_suffix(suffix))
        written.append(suffix)

    texts = [f"{name}: {value if isinstance(value, str) else json.dumps(value)}" for name, value in record.items()]
    place(".mid", lambda path: path.write_bytes(with_texts(score.dumps_midi(), texts)))
    place(".json", lambda path: path.write_text(json.dumps(record, indent=2) + "\n"))
    # What else has this name is of other music.
    for suffix in set(SUFFIXES) - set(written):
        stem.with_suffix(suffix).unlink(missing_ok=True)
    for kind in sorted(set(options.formats) & set(PICTURES)):
        place(f".{kind}", lambda path: piano_roll(score, path, prompt_seconds, DARK if options.dark else LIGHT))
    if soundfont is not None:
        audio, sample_rate = render_audio(score, soundfont)
        for kind in sorted(set(options.formats) & set(AUDIO)):
            place(f".{kind}", lambda path: write_audio(path, audio, sample_rate))
    return written


def open_port(name):
    """Open a MIDI port by its name, or none without one."""
    if name is None:
        return None
    from evaluation.rendering import MidiPort

    try:
        return MidiPort(name)
    except ImportError:
        return fail("--midi_port needs python-rtmidi; to get it: pip install python-rtmidi")
    except OSError as error:
        return fail(error)


def main(arguments=None):
    """Read, sample, write.

    Args:
        arguments: The words of the command line; those of the process when None.
    """
    options = parse_arguments(arguments)
    stems = name_outputs(options)
    port = open_port(options.midi_port)
    folder = find_model(options.model)
    model, tokenizer = load(options.model, folder)
    prompt = read_prompt(options, tokenizer)
    soundfont = find_sound(options)
    try:
        options.output_dir.mkdir(parents=True, exist_ok=True)
        # Whether it can be written to is better known before the music is made than after.
        tempfile.TemporaryFile(dir=options.output_dir).close()
    except OSError as error:
        fail(f"{options.output_dir} cannot be written to: {error.strerror or error}")

    with ctrl_c_noted() as stopped:
        started = time.perf_counter()
        samples = sample(options, model, tokenizer, prompt, port, stopped)
        took = time.perf_counter() - started

    try:
        with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=options.output_dir) as aside:
            for number, (stem, ids) in enumerate(zip(stems, samples, strict=True), start=1):
                score = tokenizer.to_score([*prompt, *ids])
                record = describe(options, folder, number, ids, stopped.is_set())
                prompt_seconds = tokenizer.token_seconds[prompt].sum()
                suffixes = write(options, stem, Path(aside), score, record, prompt_seconds, soundfont)
                print(f"{stem}{{{','.join(suffixes)}}}")
    except OSError as error:
        fail(f"{options.output_dir} cannot be written to: {error.strerror or error}")

    seconds = [tokenizer.token_seconds[ids].sum() for ids in samples]
    for stem, ids, made in zip(stems, samples, seconds, strict=True):
        if len(ids) >= most_tokens(options.seconds) and made < options.seconds:
            print(f"{stem} was cut at {len(ids)} tokens, after {made:.1f} s of music.", file=sys.stderr)
    tokens = sum(map(len, samples))
    print(
        f"seed {options.seed}: {tokens} tokens in {took:.1f} s, {tokens / took:.0f} tokens/s, "
        f"{sum(seconds) / took:.1f} seconds of music per second"
    )
    if port is not None:
        late = port.close(at_once=stopped.is_set())
        if late:
            times = f"{len(late)} times, {max(late):.2f} s at most, {sum(late):.2f} s in all"
            print(f"The music had to wait for the model: {times}.", file=sys.stderr)
    if stopped.is_set():
        raise SystemExit(130)


if __name__ == "__main__":
    try:
        main()
    except ModuleNotFoundError as error:
        fail(f'{error}; pip install --editable ".[all]" brings it.')
    except KeyboardInterrupt:
        raise SystemExit(130) from None
