"""Generate piano music: a MIDI file, its sound and its piano roll for each sample.

    python generate.py                                    30 seconds from nothing, by the shipped model
    python generate.py mine.mid --num_samples 4           four continuations of the first ten seconds of a file
    python generate.py mine.mid --infill 12 18            the file, with these six seconds new
    python generate.py --density 6 --composer Chopin      six notes a second, as Chopin wrote
    python generate.py --seconds 3600 --stream            an hour of music, each note printed when it has ended

This script handles flags and files; `tokenization.generate_music` generates. A mistake of the user ends in one line
and exit code 2 and leaves nothing half-written. Ctrl-C ends the generation early, and the music so far is written.
"""

import argparse
import hashlib
import json
import math
import os
import platform
import secrets
import shlex
import shutil
import signal
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from corpus.plain_text import print_line, printable

SHIPPED_MODEL = Path(__file__).parent / "checkpoints" / "maestro-small"

# Files beside each MIDI file: its record, and those of --formats.
AUDIO, PICTURES = ("wav", "flac", "mp3"), ("png", "svg")
SUFFIXES = tuple(f".{kind}" for kind in ("mid", "json", *PICTURES, *AUDIO))

# The libraries whose versions decide, with Python's, whether a seed gives the same bytes.
LIBRARIES = ("music-tx", "torch", "transformers", "miditok", "symusic", "matplotlib", "midirenderer", "soundfile")


def fail(message):
    """Exit with one line on stderr and code 2."""
    print(printable(f"generate.py: {' '.join(str(message).split())}"), file=sys.stderr)
    raise SystemExit(2)


def readable(text):
    """Return a text in which bytes that are not UTF-8, as file names may have, are replaced."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def within(kind, low, high):
    """Return an argparse type: a number between two bounds, both included."""

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


def control(text):
    """Check the text of a control: a word, or pairs of seconds and value."""
    try:
        wanted_of(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no list of seconds:value, such as 0:60,20:100") from None
    return text


def wanted_of(text):
    """Return what `Controls` takes for the text of a control."""
    if ":" not in text:
        return text
    return [(float(seconds), value) for seconds, value in (pair.split(":") for pair in text.split(","))]


def make_parser():
    """Return the parser of the command line."""
    usage = "python generate.py [MIDI] [--seconds S] [--num_samples N] [options below]"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], usage=usage)
    parser.error = fail
    duration, default = within(float, 0.01, 86_400), " (default: %(default)s)"

    add = parser.add_argument_group("music").add_argument
    add("--model", default=str(SHIPPED_MODEL), help="folder, or user/name on the Hub (default: the shipped model)")
    add("midi", metavar="MIDI", nargs="?", help="file to continue, as --prompt")
    add("--prompt", metavar="MIDI", help="file to continue, - for standard input (default: generate from nothing)")
    add("--prompt_seconds", metavar="S", type=duration, default=10.0, help="seconds of it to use" + default)
    add("--seconds", metavar="S", type=duration, default=30.0, help="seconds to generate" + default)
    add("--ending", action="store_true", help="let the last notes end, a few seconds after --seconds")
    add(
        "--infill",
        metavar=("START", "STOP"),
        type=within(float, 0, 86_400),
        nargs=2,
        help="seconds of the file to write anew",
    )
    add("--num_samples", metavar="N", type=within(int, 1, 1024), default=1, help="number of samples" + default)

    text = "a value, values over time as 0:60,20:100, planned by the model (density's default), or off"
    add = parser.add_argument_group("controls, for models that know them", text).add_argument
    add("--density", metavar="N", type=control, help="onsets per second, 1 to 22")
    add("--loudness", metavar="V", type=control, help="mean velocity, 32 to 88")
    add("--note_length", metavar="S", type=control, help="median length in seconds with the pedal, 0.05 to 2.3")
    add("--composer", metavar="NAME", type=control, help="such as Chopin, Bach or Debussy")

    add = parser.add_argument_group("sampling").add_argument
    temperature, key = within(float, 0.01, 100), within(int, 0, 127)
    add("--temperature", metavar="T", type=temperature, default=1.0, help="divides the logits" + default)
    add(
        "--top_k",
        metavar="K",
        type=within(int, 0, 1_000_000),
        default=0,
        help="sample from the K likeliest, 0: all" + default,
    )
    add("--top_p", metavar="P", type=within(float, 0.01, 1), default=1.0, help="nucleus sampling, 1: off" + default)
    add(
        "--min_p",
        metavar="P",
        type=within(float, 0, 1),
        default=0.02,
        help="leave out tokens less than P times as likely as the likeliest, 0: off" + default,
    )
    add("--max_polyphony", metavar="N", type=within(int, 1, 128), help="most notes at once (default: no limit)")
    add("--max_note_seconds", metavar="S", type=duration, help="longest note (default: 10)")
    add("--pitch_range", metavar=("LOW", "HIGH"), type=key, nargs=2, help="60 is C4 (default: 21 108)")
    add("--seed", type=within(int, 0, 2**32 - 1), help="the same seed gives the same bytes (default: random)")

    add = parser.add_argument_group("while generating").add_argument
    add("--stream", action="store_true", help="print each note when it has ended")
    add("--midi_port", metavar="NAME", help="play on a MIDI port in real time")

    add("--threads", metavar="N", type=within(int, 1, 1024), default=1, help="threads of PyTorch on a CPU" + default)

    add = parser.add_argument_group("output").add_argument
    add("--output_dir", metavar="DIR", type=Path, default=Path("samples"), help="folder for the files" + default)
    kinds, formats = (*AUDIO, *PICTURES), ["wav", "png"]
    add("--formats", nargs="*", choices=kinds, default=formats, help="files beside the MIDI file (default: wav png)")
    add("--dark", action="store_true", help="draw the piano roll on a dark background")
    add("--soundfont", metavar="SF2", help="SoundFont of the sound (default: $SOUNDFONT, or the best one found)")
    add("--overwrite", action="store_true", help="replace existing files")
    return parser


def parse_arguments(argv=None):
    """Read the command line.

    Args:
        argv: The words of the command line; those of the process when None.

    Returns:
        The options by name.
    """
    options = make_parser().parse_args(argv)
    if options.midi is not None and options.prompt is not None:
        fail(f"{options.midi} and --prompt {options.prompt}: there can be one prompt; leave one out.")
    options.prompt = options.prompt if options.midi is None else options.midi
    del options.midi
    if options.num_samples > 1 and (options.stream or options.midi_port):
        fail(f"--num_samples {options.num_samples}: --stream and --midi_port need one sample; leave it out.")
    if options.infill and options.prompt is None:
        fail("--infill needs the file that it is to change; give its name.")
    if options.infill and (options.ending or options.stream or options.midi_port):
        fail("--infill writes whole pieces: leave out --ending, --stream and --midi_port.")
    if options.seed is None:
        options.seed = secrets.randbelow(100_000)
    return options


def exact_command(options):
    """Return the command that gives the same bytes again, without where they are written and the prompt's folder."""
    parser, words = make_parser(), ["python", "generate.py"]
    for name, value in vars(options).items():
        if name in ("output_dir", "overwrite") or value == parser.get_default(name):
            continue
        words.append(f"--{name}")
        if name == "prompt":
            value = Path(value).name
        if value is not True:
            words += map(str, value if isinstance(value, list) else [value])
    return readable(shlex.join(words))


def name_outputs(options):
    """Return the paths of the outputs, without suffix; fail if one exists and may not be replaced."""
    stems = [options.output_dir / f"sample-{options.seed}-{i + 1}" for i in range(options.num_samples)]
    for path in (stem.with_suffix(suffix) for stem in stems for suffix in SUFFIXES):
        if path.exists() and not options.overwrite:
            fail(f"{path} exists; give --overwrite, another --seed or another --output_dir.")
    return stems


def load(name):
    """Load a model and its tokenizer."""
    from evaluation.loading import load_model, load_model_tokenizer

    try:
        model, tokenizer = load_model(name), load_model_tokenizer(name)
    except ValueError as error:
        fail(error)
    try:
        _ = tokenizer.token_seconds
    except ValueError as error:
        fail(f"{name} cannot generate music by seconds: {error}")
    return model, tokenizer


@contextmanager
def unfinished_folder(options):
    """Yield a hidden folder in the output folder for files that are being written; no other run has the seed then.

    Folders that killed runs have left are removed.
    """
    from corpus.atomic_files import exclusive, remove_unfinished

    new = [folder for folder in (options.output_dir, *options.output_dir.parents) if not folder.exists()]
    folder = options.output_dir / f".samples.unfinished-{os.getpid()}"
    try:
        with ExitStack() as stack:
            try:
                stack.enter_context(exclusive(options.output_dir / f".seed-{options.seed}.lock"))
                remove_unfinished(options.output_dir)
                folder.mkdir()
            except BlockingIOError:
                fail(
                    f"another run writes samples of seed {options.seed} to {options.output_dir}; give another --seed."
                )
            except OSError as error:
                fail(f"{options.output_dir} cannot be written to: {error.strerror or error}")
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            yield folder
    finally:
        # A run that failed leaves no folders behind.
        with suppress(OSError):
            for folder in new:
                folder.rmdir()


def read_prompt(options):
    """Return the bytes of the prompt; None if there is none."""
    if options.prompt is None:
        return None
    try:
        return sys.stdin.buffer.read() if options.prompt == "-" else Path(options.prompt).read_bytes()
    except OSError as error:
        return fail(f"the prompt cannot be read: {error}")


def encode_prompt(options, midi, tokenizer):
    """Return the ids of the prompt, `[T]`: BOS alone if there is none."""
    import numpy as np

    from tokenization import first_seconds

    if midi is None:
        return np.array([tokenizer.bos_token_id])
    try:
        ids = np.array(tokenizer.encode(midi))
    except ValueError as error:
        fail(f"the prompt cannot be read: {options.prompt}: {str(error).removeprefix('the MIDI bytes: ')}")
    return ids if options.infill else first_seconds(ids, tokenizer, options.prompt_seconds)


def find_sound(options):
    """Find a SoundFont and check that it renders.

    Returns:
        Its path; None if no sound is wanted, or if it cannot be rendered here, which is then printed.
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
    """A streamer for `generate()` that draws a progress bar on a terminal: seconds of music, all samples together."""

    def __init__(self, tokenizer, seconds, num_samples):
        from tqdm import tqdm

        self.token_seconds, self.seconds = tokenizer.token_seconds, seconds
        self.finished, self.elapsed = 0.0, None
        layout = "{percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s of music, {elapsed} elapsed, {remaining} remaining"
        # Drawn only once there is something to show: an error before that ends in one line.
        self.bar = tqdm(total=seconds * num_samples, bar_format=layout, leave=False, delay=0.01, disable=None)

    def put(self, ids):
        """Take the prompt of a batch, then one token of each of its samples at a time, `[B]`."""
        if self.elapsed is None:
            self.elapsed = 0.0
            return
        self.elapsed = self.elapsed + self.token_seconds[ids.numpy()]
        self.bar.update(self.finished + self.elapsed.clip(max=self.seconds).sum() - self.bar.n)

    def end(self):
        """Finish a batch; another may follow."""
        self.finished, self.elapsed = self.bar.n, None
        if self.finished >= self.bar.total:
            self.bar.close()


def new_seconds(options):
    """Return how many seconds of music are wanted."""
    return options.seconds if options.infill is None else options.infill[1] - options.infill[0]


def make_streamer(options, model, tokenizer, prompt, port, stopped):
    """Return the streamer that follows the generation: notes if they are printed or played, else a progress bar.

    Args:
        options: The options.
        model: The model, for its window.
        tokenizer: The tokenizer.
        prompt: The ids of the prompt, `[T]`.
        port: A `MidiPort`, or None.
        stopped: A `threading.Event` to set when nobody reads the notes any more.
    """
    from evaluation.rendering import key_name
    from tokenization import MidiStreamer

    if not options.stream and port is None:
        return Progress(tokenizer, new_seconds(options), options.num_samples)
    # The streamer gets only what the model sees of the prompt.
    unseen = prompt[: -(model.config.sliding_window or len(prompt))]
    unseen_seconds = tokenizer.token_seconds[unseen].sum()

    def print_note(note):
        start, name = note.start_seconds + unseen_seconds, key_name(note.pitch)
        if not print_line(f"{start:9.2f} s  {name:<3} velocity {note.velocity:3}  {note.duration_seconds:5.2f} s"):
            stopped.set()

    return MidiStreamer(
        tokenizer, on_note=print_note if options.stream else None, on_event=port and port.put, skip_prompt=True
    )


@contextmanager
def ctrl_c_noted():
    """Yield a `threading.Event` that the first Ctrl-C sets; a second one raises KeyboardInterrupt."""
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
    """Generate the samples.

    Args:
        options: The options.
        model: The model.
        tokenizer: Its tokenizer.
        prompt: The ids to continue, `[T]`.
        port: A `MidiPort` to play on meanwhile, or None.
        stopped: A `threading.Event` that ends the generation.

    Returns:
        The ids of each sample, prompt included, a list of `[N]`; fewer samples if the event came before their batch.
    """
    from transformers import set_seed

    from tokenization import generate_music

    limits = {name: getattr(options, name) for name in ("max_polyphony", "max_note_seconds", "pitch_range")}
    controls = {name: getattr(options, name) for name in ("density", "loudness", "note_length", "composer")}
    set_seed(options.seed)
    try:
        return generate_music(
            model,
            tokenizer,
            prompt,
            seconds=options.seconds,
            infill=options.infill,
            controls={name: wanted_of(text) for name, text in controls.items() if text is not None},
            num_samples=options.num_samples,
            ending=options.ending,
            grammar={name: value for name, value in limits.items() if value is not None},
            streamer=make_streamer(options, model, tokenizer, prompt, port, stopped),
            should_stop=stopped.is_set,
            do_sample=True,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            min_p=options.min_p,
        )
    except ValueError as error:
        return fail(error)


def describe(options, folder, number, tokens, interrupted, midi):
    """Return the record of a sample, for JSON: the same for the same command."""
    from corpus.atomic_files import sha256

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
        "tokens": tokens,
        "interrupted": interrupted,
    }
    if options.prompt is not None:
        record["prompt"] = {readable(Path(options.prompt).name): hashlib.sha256(midi).hexdigest()}
    return record


def with_texts(midi, texts):
    """Insert text events at the beginning of a MIDI file, which symusic cannot write.

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


def write(options, stem, folder, score, record, parts, soundfont):
    """Write the files of one sample, each to a temporary folder first and then moved to its name.

    `parts` holds what `piano_roll` is to shade: `prompt_seconds` or `gap_seconds`.

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
    # Other files of this name belong to a sample that is being replaced.
    for suffix in set(SUFFIXES) - set(written):
        stem.with_suffix(suffix).unlink(missing_ok=True)
    for kind in sorted(set(options.formats) & set(PICTURES)):
        place(f".{kind}", lambda path: piano_roll(score, path, theme=DARK if options.dark else LIGHT, **parts))
    if soundfont is not None:
        audio, sample_rate = render_audio(score, soundfont)
        for kind in sorted(set(options.formats) & set(AUDIO)):
            place(f".{kind}", lambda path: write_audio(path, audio, sample_rate))
    return written


def open_port(name):
    """Open a MIDI port by its name; None without a name."""
    if name is None:
        return None
    from evaluation.rendering import MidiPort

    try:
        return MidiPort(name)
    except ImportError:
        return fail("--midi_port needs python-rtmidi; to get it: pip install python-rtmidi")
    except OSError as error:
        return fail(error)


def main(argv=None):
    """Run the command line.

    Args:
        argv: The words of the command line; those of the process when None.

    Returns:
        The exit code: 0, or 130 if Ctrl-C ended the generation early.
    """
    options = parse_arguments(argv)
    midi = read_prompt(options)
    with unfinished_folder(options) as folder:
        return generate(options, midi, folder)


def generate(options, midi, folder):
    """Generate the samples and write their files.

    Args:
        options: The options.
        midi: The bytes of the prompt, or None.
        folder: A folder for files that are being written.

    Returns:
        The exit code, as for `main`.
    """
    stems = name_outputs(options)
    port = open_port(options.midi_port)
    model, tokenizer = load(options.model)
    prompt = encode_prompt(options, midi, tokenizer)
    soundfont = find_sound(options)

    import torch

    torch.set_num_threads(options.threads)
    with ctrl_c_noted() as stopped:
        started = time.perf_counter()
        samples = sample(options, model, tokenizer, prompt, port, stopped)
        took = time.perf_counter() - started

    parts = {"prompt_seconds": tokenizer.token_seconds[prompt].sum()}
    if options.infill:
        parts = {"gap_seconds": tuple(options.infill)}
    try:
        for number, (stem, ids) in enumerate(zip(stems, samples, strict=False), start=1):
            score = tokenizer.to_score(ids)
            tokens = len(ids) if options.infill else len(ids) - len(prompt)
            record = describe(options, Path(model.name_or_path), number, tokens, stopped.is_set(), midi)
            suffixes = write(options, stem, folder, score, record, parts, soundfont)
            print_line(f"{stem}{{{','.join(suffixes)}}}")
    except OSError as error:
        fail(f"{options.output_dir} cannot be written to: {error.strerror or error}")

    if options.infill:
        print_line(f"seed {options.seed}: {len(samples)} x {new_seconds(options):g} seconds of music in {took:.1f} s")
        return 130 if stopped.is_set() else 0
    samples = [ids[len(prompt) :] for ids in samples]
    seconds = [tokenizer.token_seconds[ids].sum() for ids in samples]
    for stem, ids, made in zip(stems, samples, seconds, strict=False):
        if made < options.seconds and tokenizer.eos_token_id not in ids and not stopped.is_set():
            print(printable(f"{stem} was cut at {len(ids)} tokens, after {made:.1f} s of music."), file=sys.stderr)
    tokens = sum(map(len, samples))
    print_line(
        f"seed {options.seed}: {tokens} tokens in {took:.1f} s, {tokens / took:.0f} tokens/s, "
        f"{sum(seconds) / took:.1f} seconds of music per second"
    )
    if port is not None:
        late = port.close(at_once=stopped.is_set())
        if late:
            times = f"{len(late)} times, {max(late):.2f} s at most, {sum(late):.2f} s in all"
            print(f"The music had to wait for the model: {times}.", file=sys.stderr)
    return 130 if stopped.is_set() else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ModuleNotFoundError as error:
        fail(f'{error}; install it with pip install --editable ".[all]".')
    except KeyboardInterrupt:
        sys.exit(130)
