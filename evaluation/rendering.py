"""Finished notes for the ear and for the eye: sound through a SoundFont, and a piano roll.

Sound comes from `midirenderer`, a synthesizer in a Python wheel: no system library is needed, only a SoundFont.
"""

import io
import math
import os
import wave
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from symusic import ControlChange, Score, Track

from evaluation.metrics import Notes, read_notes

# Best piano first. Compressed SoundFonts (.sf3) are left out: the synthesizer does not read them.
SOUNDFONT_NAMES = ("MuseScore_General_Full.sf2", "MuseScore_General.sf2", "FluidR3_GM.sf2", "default-GM.sf2")
SOUNDFONT_FOLDERS = (
    "/usr/share/sounds/sf2",
    "/usr/share/soundfonts",
    "/usr/local/share/soundfonts",
    "/opt/homebrew/share/soundfonts",
)

# Strings and room die away within two seconds of the last release, in all SoundFonts tried.
TAIL_SECONDS = 2.0

# With its highest peak at -1 dBFS, MAESTRO's piano is at -18.7 to -13.5 LUFS (24 excerpts, two SoundFonts): all of it
# can be brought to -20 LUFS without clipping.
TARGET_LOUDNESS = -20.0
PEAK = 10 ** (-1 / 20)

# The picture's measures in inches; KEY is the height of one key's lane, in one row of music and in several.
WIDTH, LEFT, RIGHT, TOP, BOTTOM, KEYBOARD_WIDTH = 13.0, 0.65, 0.25, 0.45, 0.5, 0.2
KEY, KEY_IN_ROWS = 0.09, 0.045
DOTS_PER_INCH = 150
MAX_ROW_SECONDS, MAX_ROWS = 60, 20

BLACK_KEYS = (1, 3, 6, 8, 10)
INK, HAIRLINE, PROMPT_SHADE = "#3c4250", "#d5d9e0", "#9fb3cb59"
BLACK_KEY, BLACK_KEY_LANE, KEY_LINE = "#22252d", "#f3f4f6", "#9aa0ab"
# Soft to loud; most of the colours are spent on 30 to 95, where pianists spend most of their notes.
VELOCITY_COLORS = LinearSegmentedColormap.from_list(
    "velocity",
    [(0, "#f9dcae"), (0.25, "#f5a868"), (0.42, "#e96a52"), (0.58, "#c4336a"), (0.75, "#7a2271"), (1, "#2a1145")],
)
VELOCITIES = Normalize(1, 127)

# A note fades as its string does, from solid to a floor, in pieces that end at these ages in seconds.
FADE_AGES = np.append(np.geomspace(0.03, 4.0, 40), np.inf)
FADE_OPACITIES = 0.35 + 0.65 * np.exp(-np.append(0, FADE_AGES[:-1]) / 0.8)


def find_soundfont(explicit: str | os.PathLike | None = None) -> Path | None:
    """Find a SoundFont: the one asked for, else a good one of the system's, else the modest one in a wheel.

    Args:
        explicit: Path of a SoundFont; comes before the environment variable `SOUNDFONT`.

    Returns:
        The SoundFont's path, or None if there is none on this machine.

    Raises:
        FileNotFoundError: If the file that was asked for does not exist.
    """
    asked = explicit or os.environ.get("SOUNDFONT")
    if asked:
        if not Path(asked).is_file():
            raise FileNotFoundError(f"There is no SoundFont {asked}; give the path of an .sf2 file.")
        return Path(asked)
    candidates = [Path(folder, name) for name in SOUNDFONT_NAMES for folder in SOUNDFONT_FOLDERS]
    # Found without importing the package, which would bring scipy along.
    wheel = find_spec("pretty_midi")
    if wheel is not None:
        candidates.append(Path(wheel.origin).with_name("TimGM6mb.sf2"))
    return next((path for path in candidates if path.is_file()), None)


def render_audio(score: Score, soundfont: str | os.PathLike) -> tuple[np.ndarray, int]:
    """Play a score on the SoundFont's grand piano, at an even loudness and without clipping.

    Args:
        score: The notes; drums are left out.
        soundfont: Path of an .sf2 file.

    Returns:
        The audio (float32 in -1..1, `[samples, 2]`) and its sample rate in Hz.

    Raises:
        ImportError: If `midirenderer` is not installed.
        ValueError: If the SoundFont cannot be played.
    """
    from midirenderer import render_wave_from

    score = score.to("second")
    # The synthesizer stops at the last event; one that says nothing makes it wait for the strings.
    wait = Track("wait", ttype="second")
    wait.controls.append(ControlChange(score.end() + TAIL_SECONDS, 64, 0, ttype="second"))
    score.tracks = [track for track in score.tracks if not track.is_drum] + [wait]
    for track in score.tracks:
        track.program = 0
    try:
        rendered = render_wave_from(Path(soundfont).read_bytes(), score.to("tick").dumps_midi())
    except RuntimeError as error:
        raise ValueError(f"{soundfont} cannot be played: {error}; give an .sf2 file.") from error
    with wave.open(io.BytesIO(rendered)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())
        return _level(samples.astype(np.float32) / 2**15, file.getframerate()), file.getframerate()


def write_wav(path: str | os.PathLike, audio: np.ndarray, sample_rate: int) -> None:
    """Write audio as 16-bit WAV.

    Args:
        path: The file to write.
        audio: Floats in -1..1, `[samples, channels]`.
        sample_rate: In Hz.
    """
    with wave.open(os.fspath(path), "wb") as file:
        file.setnchannels(audio.shape[1])
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(np.rint(audio * (2**15 - 1)).astype("<i2").tobytes())


def loudness(audio: np.ndarray, sample_rate: int) -> float:
    """Measure the integrated loudness in LUFS: what a listener hears, where peaks tell what a converter meets.

    Args:
        audio: Floats in -1..1, `[samples, channels]`, at 48 kHz, for which the standard gives its filter.
        sample_rate: In Hz.

    Returns:
        The loudness; minus infinity for silence or less than 400 ms.

    Source: ITU-R BS.1770-4, with its filters applied to each block's spectrum.
    """
    block = round(0.4 * sample_rate)
    z = np.exp(-2j * np.pi * np.fft.rfftfreq(block, 1 / sample_rate) / 48_000)
    shelf = np.polyval([1.19839281085285, -2.69169618940638, 1.53512485958697], z)
    shelf /= np.polyval([0.73248077421585, -1.69065929318241, 1.0], z)
    high_pass = (1 - z) ** 2 / np.polyval([0.99007225036621, -1.99004745483398, 1.0], z)
    # Parseval: a block's power is its spectrum's, halves of which mirror each other.
    weight = 2 * np.abs(shelf * high_pass) ** 2 / block**2
    channels = np.ascontiguousarray(audio.T)
    starts = range(0, len(audio) - block + 1, block // 4)
    spectra = (np.fft.rfft(channels[:, start : start + block]) for start in starts)
    power = np.array([np.square(np.abs(spectrum)).sum(axis=0) @ weight for spectrum in spectra])
    # Two gates leave the pauses out: an absolute one at -70 LUFS, and one 10 LU below what passes it.
    power = power[power > 10 ** ((-70 + 0.691) / 10)]
    power = power[power > 0.1 * power.mean()] if len(power) else power
    return -0.691 + 10 * math.log10(power.mean()) if len(power) else -math.inf


def _level(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """Bring audio to the target loudness, or as near as its peaks allow."""
    peak = max(audio.max(), -audio.min())
    if peak == 0:
        return audio
    gain = min(10 ** ((TARGET_LOUDNESS - loudness(audio, sample_rate)) / 20), PEAK / peak)
    return audio * np.float32(gain)


def piano_roll(score: Score, path: str | os.PathLike, prompt_seconds: float = 0.0) -> None:
    """Draw the notes over time as PNG: keys upwards, velocity as colour, the prompt shaded apart.

    Music longer than a minute is laid out in rows, as on a page. The same notes give the same bytes.

    Args:
        score: The notes; drums are left out.
        path: The file to write.
        prompt_seconds: How much of the beginning was given rather than generated.
    """
    notes = read_notes(score)
    # Rounded, because single precision makes sixty seconds a little more than a minute.
    seconds = round(max(float(notes.end.max(initial=0)), prompt_seconds, 1.0), 3)
    rows = min(math.ceil(seconds / MAX_ROW_SECONDS), MAX_ROWS)
    row_seconds = seconds if rows == 1 else 10 * math.ceil(seconds / rows / 10)
    # The keys in use and two more on either side; the middle of the keyboard is always in view.
    low, high = notes.pitch.min(initial=53) - 2, notes.pitch.max(initial=67) + 2
    row_height = (high - low + 1) * (KEY if rows == 1 else KEY_IN_ROWS)
    height = TOP + rows * (row_height + BOTTOM)

    figure = Figure(figsize=(WIDTH, height), dpi=DOTS_PER_INCH, facecolor="white")
    FigureCanvasAgg(figure)

    def add_axes(left: float, top: float, width: float, axes_height: float) -> Axes:
        rectangle = (left / WIDTH, 1 - (top + axes_height) / height, width / WIDTH, axes_height / height)
        axes = figure.add_axes(rectangle)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, labelsize=9, labelcolor=INK)
        return axes

    for row in range(rows):
        top = TOP + row * (row_height + BOTTOM)
        keyboard = add_axes(LEFT - KEYBOARD_WIDTH, top, KEYBOARD_WIDTH, row_height)
        keyboard.set(xlim=(0, 1), xticks=[], ylim=(low - 0.5, high + 0.5))
        _draw_keyboard(keyboard, np.arange(low, high + 1))
        roll = add_axes(LEFT, top, WIDTH - LEFT - RIGHT, row_height)
        roll.set(xlim=(row * row_seconds, (row + 1) * row_seconds), yticks=[], ylim=(low - 0.5, high + 0.5))
        _draw_roll(roll, notes, np.arange(low, high + 1), prompt_seconds)
    roll.set_xlabel("seconds", color=INK, fontsize=9)
    _draw_scale(add_axes(WIDTH - RIGHT - 1.5, 0.17, 1.2, 0.1))
    # Matplotlib would write its version into the file.
    figure.savefig(path, format="png", metadata={"Software": None})


def _draw_keyboard(axes: Axes, keys: np.ndarray) -> None:
    """Draw a piano's keys, the Cs named."""
    black = keys[np.isin(keys % 12, BLACK_KEYS)]
    cs = keys[keys % 12 == 0]
    # White keys meet behind each black one, and between B and C and between E and F.
    axes.hlines(black, 0.6, 1, color=KEY_LINE, linewidth=0.6)
    axes.hlines(keys[np.isin(keys % 12, (0, 5))] - 0.5, 0, 1, color=KEY_LINE, linewidth=0.6)
    axes.barh(black, 0.6, height=0.9, color=BLACK_KEY)
    axes.set_yticks(cs, [f"C{c // 12 - 1}" for c in cs])
    axes.spines[:].set(visible=True, color=KEY_LINE, linewidth=0.6)


def _draw_roll(axes: Axes, notes: Notes, keys: np.ndarray, prompt_seconds: float) -> None:
    """Draw the part of the notes that the axes' time limits show, over one lane for each key."""
    begin, finish = axes.get_xlim()
    above = axes.get_xaxis_transform()
    black = keys[np.isin(keys % 12, BLACK_KEYS)]
    axes.barh(black, finish - begin, left=begin, height=1, color=BLACK_KEY_LANE)
    if prompt_seconds > begin:
        axes.axvspan(begin, min(prompt_seconds, finish), color=PROMPT_SHADE, linewidth=0)
        axes.text(begin, 1, " prompt", transform=above, va="bottom", color=INK, fontsize=9)
    if begin < prompt_seconds < finish:
        axes.axvline(prompt_seconds, color=INK, linewidth=0.8)
        axes.text(prompt_seconds, 1, " continuation", transform=above, va="bottom", color=INK, fontsize=9)
    axes.hlines(keys[keys % 12 == 0] - 0.5, begin, finish, color=HAIRLINE, linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=12, steps=[1, 2, 5, 10]))

    shown = (notes.start < finish) & (notes.end > begin)
    start, end, pitch, velocity = (column[shown] for column in notes)
    # A hair of paper between a note and its repetition, and enough ink for the shortest.
    hair = (finish - begin) / 1500
    end = np.maximum(end - hair, start + 2 * hair)
    colors = VELOCITY_COLORS(VELOCITIES(velocity))
    ages = np.append(0, FADE_AGES)
    for young, old, opacity in zip(ages[:-1], ages[1:], FADE_OPACITIES, strict=True):
        left, right = np.minimum(start + young, end), np.minimum(start + old, end)
        corners = [(left, pitch - 0.42), (right, pitch - 0.42), (right, pitch + 0.42), (left, pitch + 0.42)]
        boxes = np.array(corners).transpose(2, 0, 1)  # [N, 4, 2]
        colors[:, 3] = opacity
        here = right > left
        # Without antialiasing the pieces of a note meet without seams.
        pieces = PolyCollection(boxes[here], facecolors=colors[here], linewidths=0, antialiaseds=False, zorder=2)
        axes.add_collection(pieces, autolim=False)


def _draw_scale(axes: Axes) -> None:
    """Draw which colour is which velocity."""
    axes.imshow(np.arange(1, 128)[None], aspect="auto", cmap=VELOCITY_COLORS, norm=VELOCITIES, extent=(1, 127, 0, 1))
    axes.set(xticks=[], yticks=[])
    axes.text(-3, 0.5, "velocity 1", ha="right", va="center", color=INK, fontsize=9)
    axes.text(131, 0.5, "127", ha="left", va="center", color=INK, fontsize=9)
