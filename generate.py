"""Generate piano music: a MIDI file, its sound and its piano roll for each sample.

    python generate.py                                      the shipped model plays by itself
    python generate.py --prompt mine.mid --num_samples 4    it continues the first ten seconds of a file in four ways

The model samples, the tokenizer reads and writes notes, the evaluation room plays and draws them: here are flags and
files. A user's mistake ends in one line and exit code 2 and leaves nothing half-written.
"""

import argparse
import math
import secrets
import sys
import tempfile
import time
from pathlib import Path

SHIPPED_MODEL = Path(__file__).parent / "checkpoints" / "maestro-small"
SUFFIXES = (".mid", ".wav", ".png")

# A second of MAESTRO is about 26 tokens; a model that needs four times as many has lost its way.
TOKENS_PER_SECOND, SPARE_TOKENS = 100, 500


def longest(options):
    """Return how many tokens a sample may have."""
    return SPARE_TOKENS + math.ceil(TOKENS_PER_SECOND * options.seconds)


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


def parse_arguments(arguments=None):
    """Read the command line.

    Args:
        arguments: The words to read; those of the process when None.

    Returns:
        The options by name.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.error = fail
    add, duration, default = parser.add_argument, within(float, 0.01, 86_400), "; %(default)s if not given"
    add("--model", default=str(SHIPPED_MODEL), help="folder, or user/name on the Hub; the shipped one if not given")
    add("--prompt", metavar="MIDI", help="file to continue; the model begins by itself if not given")
    add("--prompt_seconds", type=duration, default=10.0, help="how much of the prompt is played" + default)
    add("--seconds", type=duration, default=30.0, help="how much music is made after it" + default)
    add("--num_samples", type=within(int, 1, 1024), default=1, help="how many, in one batch" + default)
    add("--temperature", type=within(float, 0.01, 100), default=1.0, help="tamer below 1, wilder above" + default)
    add("--top_k", type=within(int, 0, 1_000_000), default=0, help="keep so many tokens, 0 all" + default)
    add("--top_p", type=within(float, 0.01, 1), default=0.95, help="keep so much probability, 1 all" + default)
    add("--seed", type=within(int, 0, 2**32 - 1), help="the same seed, the same bytes; drawn if not given")
    add("--output_dir", type=Path, default=Path("samples"), help="folder for the files" + default)
    add("--soundfont", metavar="SF2", help="whose piano plays; $SOUNDFONT, or the best one found, if not given")
    add("--overwrite", action="store_true", help="replace files that are there")
    options = parser.parse_args(arguments)
    if options.seed is None:
        options.seed = secrets.randbelow(100_000)
    return options


def name_outputs(options):
    """Name the outputs, without suffix, and make sure that none of them is there already."""
    stems = [options.output_dir / f"sample-{options.seed}-{i + 1}" for i in range(options.num_samples)]
    for path in (stem.with_suffix(suffix) for stem in stems for suffix in SUFFIXES):
        if path.exists() and not options.overwrite:
            fail(f"{path} is there already; give --overwrite, another --seed or another --output_dir.")
    return stems


def load(name):
    """Load a model and its tokenizer from a folder or the Hub."""
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
    return model.to(torch.accelerator.current_accelerator(check_available=True) or "cpu"), tokenizer


def read_prompt(options, tokenizer):
    """Read what the music begins with.

    Returns:
        Its ids `[T]`, which are BOS alone without a prompt, and its length in seconds.
    """
    import numpy as np

    if options.prompt is None:
        return np.array([tokenizer.bos_token_id]), 0.0
    try:
        ids = np.array(tokenizer.encode(options.prompt))
    except (OSError, ValueError) as error:
        fail(f"the prompt cannot be read: {error}")
    # The sum of many hundredths strays from the grid, by less than half a step.
    elapsed = tokenizer.token_seconds[ids].cumsum()
    given = elapsed < options.prompt_seconds + 0.005
    return ids[given], elapsed[given][-1]


def find_sound(options):
    """Find a SoundFont that plays.

    Returns:
        Its path; None if there can be no sound here, and then a line has said why.
    """
    from symusic import Score

    from evaluation.rendering import find_soundfont, render_audio

    try:
        soundfont = find_soundfont(options.soundfont)
        if soundfont is not None:
            render_audio(Score(), soundfont)
            return soundfont
        missing = "there is no SoundFont"
    except ImportError:
        missing = "midirenderer is not installed"
    except (OSError, ValueError) as error:
        fail(error)
    print(f"No sound: {missing}. To hear the music: pip install midirenderer pretty_midi", file=sys.stderr)
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


def sample(options, model, tokenizer, prompt):
    """Let the model continue the prompt.

    Args:
        options: The options.
        model: The model.
        tokenizer: Its tokenizer.
        prompt: Ids to begin with, `[T]`.

    Returns:
        The new ids of each sample, without padding, a list of `[N]`, and the seconds that it took.
    """
    import torch
    from transformers import set_seed

    from tokenization import PIANO, MaxSeconds, MusicGrammar

    # A prompt longer than what the model sees at once is taken by its end.
    ids = torch.tensor(prompt[None, -(model.config.sliding_window or len(prompt)) :], device=model.device)
    set_seed(options.seed)
    started = time.perf_counter()
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        num_return_sequences=options.num_samples,
        max_new_tokens=longest(options),
        logits_processor=[MusicGrammar(tokenizer, **PIANO)],
        stopping_criteria=[MaxSeconds(tokenizer, options.seconds, ids.shape[1])],
        streamer=Progress(tokenizer, options.seconds, options.num_samples),
    )
    took = time.perf_counter() - started
    return [row[row != tokenizer.pad_token_id] for row in output[:, ids.shape[1] :].cpu().numpy()], took


def write(stem, folder, score, prompt_seconds, soundfont):
    """Write the files of one sample into a folder aside, then move them to their names.

    Returns:
        The suffixes of the files written.
    """
    from evaluation.rendering import piano_roll, render_audio, write_wav

    unfinished = folder / stem.name
    score.dump_midi(unfinished.with_suffix(".mid"))
    if soundfont is not None:
        write_wav(unfinished.with_suffix(".wav"), *render_audio(score, soundfont))
    piano_roll(score, unfinished.with_suffix(".png"), prompt_seconds)
    written = [suffix for suffix in SUFFIXES if unfinished.with_suffix(suffix).exists()]
    for suffix in SUFFIXES:
        if suffix in written:
            unfinished.with_suffix(suffix).replace(stem.with_suffix(suffix))
        else:
            # An older sound would be that of other music.
            stem.with_suffix(suffix).unlink(missing_ok=True)
    return written


def main(arguments=None):
    """Read, sample, write.

    Args:
        arguments: The words of the command line; those of the process when None.
    """
    options = parse_arguments(arguments)
    stems = name_outputs(options)
    model, tokenizer = load(options.model)
    prompt, prompt_seconds = read_prompt(options, tokenizer)
    soundfont = find_sound(options)
    try:
        options.output_dir.mkdir(parents=True, exist_ok=True)
        # Whether it can be written to is better known before the music is made than after.
        tempfile.TemporaryFile(dir=options.output_dir).close()
        samples, took = sample(options, model, tokenizer, prompt)
        with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=options.output_dir) as folder:
            for stem, ids in zip(stems, samples, strict=True):
                score = tokenizer.to_score([*prompt, *ids])
                suffixes = write(stem, Path(folder), score, prompt_seconds, soundfont)
                print(f"{stem}{{{','.join(suffixes)}}}")
    except OSError as error:
        fail(f"{options.output_dir} cannot be written to: {error.strerror or error}")

    seconds = [tokenizer.token_seconds[ids].sum() for ids in samples]
    for stem, ids, made in zip(stems, samples, seconds, strict=True):
        if len(ids) == longest(options) and made < options.seconds:
            print(f"{stem} was cut at {len(ids)} tokens, after {made:.1f} s of music.", file=sys.stderr)
    tokens = sum(map(len, samples))
    print(
        f"seed {options.seed}: {tokens} tokens in {took:.1f} s, {tokens / took:.0f} tokens/s, "
        f"{sum(seconds) / took:.1f} seconds of music per second"
    )


if __name__ == "__main__":
    try:
        main()
    except ModuleNotFoundError as error:
        fail(f'{error}; pip install --editable ".[all]" brings it.')
