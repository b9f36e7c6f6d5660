"""Audio and pictures of notes: sound through a SoundFont, a live MIDI port, and a piano roll.

Sound comes from `midirenderer`, a synthesizer in a Python wheel, and is written by `soundfile`, whose wheel brings the
encoders along: no system library is needed, only a SoundFont.
"""

import io
import math
import os
import queue
import threading
import time
import wave
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from symusic import ControlChange, Score, Track

from evaluation.metrics import NoteArrays, score_to_arrays

# Best piano first. Compressed SoundFonts (.sf3) are left out: the synthesizer does not read them.
SOUNDFONT_NAMES = ("MuseScore_General_Full.sf2", "MuseScore_General.sf2", "FluidR3_GM.sf2", "default-GM.sf2")
SOUNDFONT_FOLDERS = (
    "/usr/share/sounds/sf2",
    "/usr/share/soundfonts",
    "/usr/local/share/soundfonts",
    "/opt/homebrew/share/soundfonts",
)

# The sound decays within two seconds of the last release, in all SoundFonts tried.
TAIL_SECONDS = 2.0

# -1 dBFS: room for the overshoot between samples and of lossy encoders. With it MAESTRO is at -18.7 to
# -13.5 LUFS (24 excerpts, two SoundFonts).
PEAK = 10 ** (-1 / 20)

# How files are written, by suffix. Opus is left out: in an Ogg file the same sound never has the same bytes.
AUDIO_FORMATS = {".wav": "WAV", ".flac": "FLAC", ".mp3": "MP3"}

# The delay of a port behind the first event, and the delay beyond that which listeners notice.
PORT_DELAY_SECONDS = 0.1
LATE_SECONDS = 0.02

# The picture's measures in inches; KEY is the height of one key's lane, in one row of music and in several.
WIDTH, LEFT, RIGHT, TOP, BOTTOM, KEYBOARD_WIDTH, PEDAL = 13.0, 0.65, 0.25, 0.45, 0.5, 0.2, 0.16
KEY, KEY_IN_ROWS = 0.09, 0.045
DOTS_PER_INCH = 150
MAX_ROW_SECONDS, MAX_ROWS = 60, 20

KEY_NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
BLACK_KEYS = (1, 3, 6, 8, 10)
VELOCITIES = Normalize(1, 127)


class Theme(NamedTuple):
    """The colours of a picture.

    Args:
        paper: Background, and the lanes of white keys.
        ink: Text.
        line: Lines between octaves.
        shade: What lies over the prompt.
        black_lane: Lanes of black keys.
        white_key: White keys of the keyboard.
        black_key: Black keys of the keyboard.
        key_line: Lines between the keys of the keyboard.
        velocity: Soft to loud.
    """

    paper: str
    ink: str
    line: str
    shade: str
    black_lane: str
    white_key: str
    black_key: str
    key_line: str
    velocity: Colormap


def _velocity_colors(*colors: str) -> Colormap:
    """Spend most of the colours on 30 to 95, where pianists spend most of their notes."""
    places = (0, 0.25, 0.42, 0.58, 0.75, 1)
    return LinearSegmentedColormap.from_list("velocity", list(zip(places, colors, strict=True)))


# On paper loud is dark, on black loud is bright.
LIGHT = Theme(
    paper="#ffffff",
    ink="#3c4250",
    line="#d5d9e0",
    shade="#9fb3cb59",
    black_lane="#f3f4f6",
    white_key="#ffffff",
    black_key="#22252d",
    key_line="#9aa0ab",
    velocity=_velocity_colors("#f9dcae", "#f5a868", "#e96a52", "#c4336a", "#7a2271", "#2a1145"),
)
DARK = Theme(
    paper="#14161c",
    ink="#c3c9d4",
    line="#343945",
    shade="#5b7ba82e",
    black_lane="#1b1e26",
    white_key="#d9dde4",
    black_key="#14161c",
    key_line="#6b7280",
    velocity=_velocity_colors("#43285f", "#7a2f80", "#c23f77", "#ee6a52", "#fba84c", "#fdf3b4"),
)


def find_soundfont(explicit: str | os.PathLike | None = None) -> Path | None:
    """Find a SoundFont: the requested one, else a good one of the system's, else the modest one in a wheel.

    Args:
        explicit: Path of a SoundFont; comes before the environment variable `SOUNDFONT`.

    Returns:
        The SoundFont's path, or None if there is none on this machine.

    Raises:
        FileNotFoundError: If the requested file does not exist.
    """
    requested = explicit or os.environ.get("SOUNDFONT")
    if requested:
        if not Path(requested).is_file():
            raise FileNotFoundError(f"There is no SoundFont {requested}; give the path of an .sf2 file.")
        return Path(requested)
    candidates = [Path(folder, name) for name in SOUNDFONT_NAMES for folder in SOUNDFONT_FOLDERS]
    # Found without importing the package, which would bring scipy along.
    wheel = find_spec("pretty_midi")
    if wheel is not None:
        candidates.append(Path(wheel.origin).with_name("TimGM6mb.sf2"))
    return next((path for path in candidates if path.is_file()), None)


def render_audio(score: Score, soundfont: str | os.PathLike) -> tuple[np.ndarray, int]:
    """Play a score on the SoundFont's grand piano, with the highest peak at -1 dBFS.

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
    # The synthesizer stops at the last event; a silent one extends the audio by the strings' decay.
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
        sample_rate = file.getframerate()
    # An hour is more than a gigabyte: from here on there is one copy of it.
    del rendered
    audio = np.divide(samples, 2**15, dtype=np.float32)
    del samples
    _normalize_peak(audio)
    return audio, sample_rate


def write_audio(path: str | os.PathLike, audio: np.ndarray, sample_rate: int) -> None:
    """Write audio as WAV or FLAC, both of 16 bits, or as MP3. The same audio gives the same bytes.

    Args:
        path: The file to write; its suffix says which.
        audio: Floats in -1..1, `[samples, channels]`.
        sample_rate: In Hz.

    Raises:
        ImportError: If `soundfile` is not installed.
        ValueError: If the suffix is none of these.
    """
    import soundfile

    suffix = Path(path).suffix
    if suffix not in AUDIO_FORMATS:
        raise ValueError(f"{path} has none of the suffixes that can be written: {', '.join(AUDIO_FORMATS)}.")
    try:
        with soundfile.SoundFile(path, "w", sample_rate, audio.shape[1], format=AUDIO_FORMATS[suffix]) as file:
            # Given all at once, the encoders would make copies of all.
            for start in range(0, len(audio), 10 * sample_rate):
                file.write(audio[start : start + 10 * sample_rate])
    except soundfile.LibsndfileError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def _normalize_peak(audio: np.ndarray) -> None:
    """Scale audio in place to the highest peak allowed."""
    peak = max(audio.max(initial=0), -audio.min(initial=0))
    if peak > 0:
        audio *= np.float32(PEAK / peak)


class MidiPort:
    """A MIDI port that plays events at their times while the music is still being generated.

    A clock starts with the first event. An event that arrives after its time is played at once, and the clock is put
    back by the delay.

    Args:
        name: Name of the port, or a part of it.

    Raises:
        ImportError: If `python-rtmidi` is not installed.
        OSError: If the machine has no such port.
    """

    def __init__(self, name: str):
        try:
            import rtmidi

            self._port = rtmidi.MidiOut()
            names = self._port.get_ports()
        except ImportError:
            raise
        # Each operating system without MIDI raises another exception.
        except Exception as error:
            raise OSError(f"There is no MIDI on this machine: {error}") from error
        matches = [i for i, known in enumerate(names) if name in known]
        if not matches:
            raise OSError(f"There is no MIDI port {name}; there are: {', '.join(names) or 'none'}.")
        self._port.open_port(matches[0])
        self._arrived, self._stopped, self._late = queue.SimpleQueue(), threading.Event(), []
        self._player = threading.Thread(target=self._play, daemon=True)
        self._player.start()

    def put(self, event) -> None:
        """Queue a `StreamedEvent` to be played at its time; events come in order, and this returns at once."""
        self._arrived.put(event)

    def close(self, at_once: bool = False) -> list[float]:
        """Wait until all events have been played, or stop at once, and close the port.

        Args:
            at_once: Do not wait for events that have not been played.

        Returns:
            Each delay of the clock, in seconds.
        """
        self._arrived.put(None)
        try:
            if not at_once:
                self._player.join()
        finally:
            self._stopped.set()
            self._player.join()
            # All notes off, also after an error.
            self._port.send_message([0xB0, 123, 0])
            self._port.close_port()
        return self._late

    def _play(self):
        """Send messages at their times, until there are no more to come."""
        clock = None
        while (event := self._arrived.get()) is not None:
            now = time.monotonic()
            if clock is None:
                clock = now + PORT_DELAY_SECONDS - event.seconds
            late = now - clock - event.seconds
            if late > LATE_SECONDS:
                self._late.append(late)
                clock += late
            if self._stopped.wait(max(-late, 0)):
                return
            self._port.send_message([0x90, event.pitch, event.velocity])


def key_name(pitch: int) -> str:
    """Name a key as pianists do, sharps for all black ones; 60 is C4."""
    return f"{KEY_NAMES[pitch % 12]}{pitch // 12 - 1}"


def piano_roll(
    score: Score,
    path: str | os.PathLike,
    prompt_seconds: float = 0.0,
    theme: Theme = LIGHT,
    gap_seconds: tuple[float, float] | None = None,
) -> None:
    """Draw the notes over time: keys upwards, velocity as colour, the pedal below, the prompt or a gap shaded.

    Music longer than a minute is laid out in rows, as on a page. The same notes give the same bytes.

    Args:
        score: The notes; drums are left out.
        path: The file to write, .png or .svg; or an open file for a PNG.
        prompt_seconds: How much of the beginning was given rather than generated.
        theme: `LIGHT` or `DARK`.
        gap_seconds: Beginning and end of a gap that was filled.
    """
    notes, pedal = score_to_arrays(score), _read_pedal(score)
    # Rounded, because single precision makes sixty seconds a little more than a minute.
    seconds = round(max(float(notes.end.max(initial=0)), prompt_seconds, 1.0), 3)
    rows = min(math.ceil(seconds / MAX_ROW_SECONDS), MAX_ROWS)
    row_seconds = seconds if rows == 1 else 10 * math.ceil(seconds / rows / 10)
    # The keys in use and two more on either side; the middle of the keyboard is always in view.
    keys = np.arange(notes.pitch.min(initial=53) - 2, notes.pitch.max(initial=67) + 3)
    keys_height = len(keys) * (KEY if rows == 1 else KEY_IN_ROWS)
    row_height = keys_height + (PEDAL if len(pedal) else 0) + BOTTOM
    height = TOP + rows * row_height

    figure = Figure(figsize=(WIDTH, height), dpi=DOTS_PER_INCH, facecolor=theme.paper)
    FigureCanvasAgg(figure)

    def add_axes(left: float, top: float, width: float, axes_height: float, **limits) -> Axes:
        rectangle = (left / WIDTH, 1 - (top + axes_height) / height, width / WIDTH, axes_height / height)
        axes = figure.add_axes(rectangle, facecolor=theme.paper, **limits)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, labelsize=9, labelcolor=theme.ink)
        return axes

    lanes = {"ylim": (keys[0] - 0.5, keys[-1] + 0.5)}
    for row in range(rows):
        top = TOP + row * row_height
        time = {"xlim": (row * row_seconds, (row + 1) * row_seconds)}
        keyboard = add_axes(LEFT - KEYBOARD_WIDTH, top, KEYBOARD_WIDTH, keys_height, xlim=(0, 1), xticks=[], **lanes)
        _draw_keyboard(keyboard, keys, theme)
        axes = add_axes(LEFT, top, WIDTH - LEFT - RIGHT, keys_height, yticks=[], **time, **lanes)
        _draw_notes(axes, notes, keys, theme)
        _draw_parts(axes, prompt_seconds, gap_seconds, theme)
        if len(pedal):
            axes.set_xticks([])
            axes = add_axes(LEFT, top + keys_height, WIDTH - LEFT - RIGHT, PEDAL, ylim=(0, 1), **time)
            axes.set_yticks([0.5], ["pedal"])
            axes.barh(0.5, pedal[:, 1] - pedal[:, 0], left=pedal[:, 0], height=0.4, color=theme.key_line)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=12, steps=[1, 2, 5, 10]))
    axes.set_xlabel("seconds", color=theme.ink, fontsize=9)
    _draw_scale(add_axes(WIDTH - RIGHT - 1.5, 0.17, 1.2, 0.1), theme)
    # Text stays text in an SVG, and the salt fixes the ids. By default Matplotlib writes its version into a PNG and
    # the date into an SVG.
    is_svg = Path(getattr(path, "name", None) or str(path)).suffix == ".svg"
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "music"}):
        figure.savefig(
            path,
            format="svg" if is_svg else "png",
            metadata={"Date": None, "Creator": None} if is_svg else {"Software": None},
        )


def _read_pedal(score: Score) -> np.ndarray:
    """Find when the sustain pedal is down, begin and end in seconds, `[N, 2]`; it lifts at the score's end at last."""
    score = score.to("second")
    spans = []
    for track in score.tracks:
        down = None
        for control in sorted((c for c in track.controls if c.number == 64), key=lambda control: control.time):
            if control.value >= 64 and down is None:
                down = control.time
            elif control.value < 64 and down is not None:
                spans.append((down, control.time))
                down = None
        if down is not None:
            spans.append((down, score.end()))
    return np.array(spans).reshape(-1, 2)


def _draw_keyboard(axes: Axes, keys: np.ndarray, theme: Theme) -> None:
    """Draw a piano's keys, the Cs named."""
    black = keys[np.isin(keys % 12, BLACK_KEYS)]
    cs = keys[keys % 12 == 0]
    axes.set_facecolor(theme.white_key)
    # White keys meet behind each black one, and between B and C and between E and F.
    axes.hlines(black, 0.6, 1, color=theme.key_line, linewidth=0.6)
    axes.hlines(keys[np.isin(keys % 12, (0, 5))] - 0.5, 0, 1, color=theme.key_line, linewidth=0.6)
    axes.barh(black, 0.6, height=0.9, color=theme.black_key)
    axes.set_yticks(cs, [key_name(c) for c in cs])
    axes.spines[:].set(visible=True, color=theme.key_line, linewidth=0.6)


def _draw_notes(axes: Axes, notes: NoteArrays, keys: np.ndarray, theme: Theme) -> None:
    """Draw the notes that the axes' time limits show, over one lane for each key."""
    begin, finish = axes.get_xlim()
    black = keys[np.isin(keys % 12, BLACK_KEYS)]
    axes.barh(black, finish - begin, left=begin, height=1, color=theme.black_lane)
    axes.hlines(keys[keys % 12 == 0] - 0.5, begin, finish, color=theme.line, linewidth=0.8)

    shown = (notes.start < finish) & (notes.end > begin)
    start, end, pitch, velocity = (column[shown] for column in notes)
    # A gap between a note and its repetition, and a minimum width for the shortest notes.
    gap = (finish - begin) / 1500
    end = np.maximum(end - gap, start + 2 * gap)
    corners = [(start, pitch - 0.42), (end, pitch - 0.42), (end, pitch + 0.42), (start, pitch + 0.42)]
    boxes = np.array(corners).transpose(2, 0, 1)  # [N, 4, 2]
    colors = theme.velocity(VELOCITIES(velocity))
    axes.add_collection(PolyCollection(boxes, facecolors=colors, linewidths=0, zorder=2), autolim=False)


def _draw_parts(axes: Axes, prompt_seconds: float, gap_seconds: tuple[float, float] | None, theme: Theme) -> None:
    """Shade what the axes' time limits show of the prompt or of the gap, and name each part where it begins."""
    begin, finish = axes.get_xlim()
    words = {"transform": axes.get_xaxis_transform(), "va": "bottom", "color": theme.ink, "fontsize": 9}
    if prompt_seconds > begin:
        axes.axvspan(begin, min(prompt_seconds, finish), color=theme.shade, linewidth=0)
        axes.text(begin, 1, " prompt", **words)
    if begin < prompt_seconds < finish:
        axes.axvline(prompt_seconds, color=theme.ink, linewidth=0.8)
        axes.text(prompt_seconds, 1, " continuation", **words)
    if gap_seconds is not None and begin < gap_seconds[1] and gap_seconds[0] < finish:
        start, stop = max(gap_seconds[0], begin), min(gap_seconds[1], finish)
        axes.axvspan(start, stop, color=theme.shade, linewidth=0)
        axes.text(start, 1, " new", **words)


def _draw_scale(axes: Axes, theme: Theme) -> None:
    """Draw which colour is which velocity."""
    axes.imshow(np.arange(1, 128)[None], aspect="auto", cmap=theme.velocity, norm=VELOCITIES, extent=(1, 127, 0, 1))
    axes.set(xticks=[], yticks=[])
    axes.text(-3, 0.5, "velocity 1", ha="right", va="center", color=theme.ink, fontsize=9)
    axes.text(131, 0.5, "127", ha="left", va="center", color=theme.ink, fontsize=9)
