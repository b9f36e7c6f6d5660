"""Controls: tokens that say what the next seconds of music are like, as a Velocity says how hard notes are struck.

Time is divided into segments of `SEGMENT_SECONDS`, counted from the beginning of the piece or of the crop, and in
generation from the end of the prompt. At the first event of a segment any of its attributes may be stated, in the
order of `ATTRIBUTES`:

    Composer_Chopin    the composer of the piece
    Density_6          onsets per second
    Loudness_60        mean velocity of the notes that begin in the segment
    NoteLength_0.4     median length of these notes in seconds, the sustain pedal included

A value stands for all numbers that are nearer to it than to its neighbours. The values are chosen so that each is met
in at least 2% of the segments of MAESTRO's training split.

Shape letters: L ids, N notes, S segments, A attributes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .performance import FOREVER, STEPS_PER_SECOND, UNKNOWN, VELOCITY_OF_BIN, Notes

SEGMENT_SECONDS = 4
SEGMENT_STEPS = SEGMENT_SECONDS * STEPS_PER_SECOND

# The composers with at least 18 pieces in MAESTRO's training split. Arrangements by a second composer count for none.
COMPOSERS = ("Bach", "Beethoven", "Brahms", "Chopin", "Debussy", "Haydn", "Liszt", "Mendelssohn", "Mozart")
COMPOSERS += ("Rachmaninoff", "Scarlatti", "Schubert", "Schumann", "Scriabin")

# Stands for an attribute that is not stated.
UNSTATED = -1

# How a control may be given instead of by a value: the model states it itself, or it is never stated.
PLANNED, OFF = "planned", "off"


@dataclass(frozen=True)
class Attribute:
    """One attribute of a segment.

    Args:
        name: The type of its tokens, such as "NoteLength".
        values: The values of its tokens, ascending if they are numbers.
        is_ratio: Whether the nearest value is that of the smallest ratio, not of the smallest difference.
    """

    name: str
    values: tuple
    is_ratio: bool = False

    @property
    def option(self) -> str:
        """The name as an option: "note_length"."""
        return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in self.name).strip("_")

    @property
    def tokens(self) -> list[str]:
        """The texts of its tokens."""
        return [f"{self.name}_{value}" for value in self.values]

    @property
    def is_number(self) -> bool:
        """Whether the values are numbers."""
        return not isinstance(self.values[0], str)

    def nearest(self, numbers) -> np.ndarray:
        """Return the indexes of the values nearest to some numbers, of the same shape."""
        values = np.asarray(self.values, dtype=np.float64)
        edges = np.sqrt(values[1:] * values[:-1]) if self.is_ratio else (values[1:] + values[:-1]) / 2
        return np.searchsorted(edges, numbers, side="right")


DENSITY = Attribute("Density", (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 18, 22))
LOUDNESS = Attribute("Loudness", tuple(range(32, 89, 4)))
NOTE_LENGTH = Attribute("NoteLength", (0.05, 0.07, 0.1, 0.14, 0.2, 0.28, 0.4, 0.56, 0.8, 1.1, 1.6, 2.3), is_ratio=True)

# What `generate_music` wants of a control unless told otherwise; the others are off. A model that plans its density
# plays as many notes as pianists do, and too many without (docs/decisions.md).
DEFAULT_CONTROLS = {DENSITY.option: PLANNED}


def make_attributes(composers: Sequence[str] = COMPOSERS) -> tuple[Attribute, ...]:
    """Return the attributes in the order in which a segment states them.

    Args:
        composers: The composers that have a token.
    """
    return Attribute("Composer", tuple(composers)), DENSITY, LOUDNESS, NOTE_LENGTH


def find_composer(name: str, composers: Sequence[str]) -> int:
    """Return the index of a composer, UNSTATED for one without a token.

    Args:
        name: A full name as MAESTRO writes it; "A / B" is a work of A arranged by B.
        composers: The composers that have a token, by their last names.
    """
    last = name.split()[-1].lower() if name and "/" not in name else ""
    return next((index for index, one in enumerate(composers) if one.lower() == last), UNSTATED)


def measure_segments(notes: Notes, length: int, is_whole: bool) -> np.ndarray:
    """Measure density, loudness and note length of each segment.

    Args:
        notes: Notes as `events_to_notes` returns them, of a piece or of a slice of one, `[N]`.
        length: The step in which the music ends.
        is_whole: Whether the piece ends there; else the segment that is cut off is not measured.

    Returns:
        Indexes of values, UNSTATED where an attribute is not known: a segment without onsets has a density only, and
        one of which most notes have no end in the slice has no note length. `[S, 3]`.
    """
    segments = length // SEGMENT_STEPS + 1
    bins = np.full((segments, 3), UNSTATED)
    seconds = np.full(segments, float(SEGMENT_SECONDS))
    seconds[-1] = (length - (segments - 1) * SEGMENT_STEPS) / STEPS_PER_SECOND
    # Less than a second is too short for a density.
    known = segments if is_whole and seconds[-1] >= 1 else segments - 1

    struck = notes.start >= 0
    start, end, velocity = notes.start[struck], notes.end[struck], notes.velocity[struck]
    segment = start // SEGMENT_STEPS
    count = np.bincount(segment, minlength=segments)
    bins[:known, 0] = DENSITY.nearest(count[:known] / seconds[:known])

    said = velocity != UNKNOWN
    number = np.bincount(segment[said], minlength=segments)
    total = np.bincount(segment[said], VELOCITY_OF_BIN[velocity[said]], minlength=segments)
    loud = np.flatnonzero(number[:known])
    bins[loud, 1] = LOUDNESS.nearest(total[loud] / number[loud])

    # The lower median: in the order of segments and lengths, the element in the middle of each segment's notes.
    duration = np.where(end == FOREVER, FOREVER, end - start)
    ordered = duration[np.lexsort((duration, segment))]
    sounding = np.flatnonzero(count[:known])
    median = ordered[(np.cumsum(count) - count)[sounding] + (count[sounding] - 1) // 2]
    is_known = median != FOREVER
    bins[sounding[is_known], 2] = NOTE_LENGTH.nearest(median[is_known] / STEPS_PER_SECOND)
    return bins


class Controls:
    """What is wanted of each attribute during generation.

    Args:
        attributes: The attributes of the tokenizer, as `tokenizer.attributes` holds them.
        wanted: For any of them, by the names "composer", "density", "loudness" and "note_length": a value; a list of
            pairs of seconds and value, interpolated between them, the seconds counted from the end of the prompt;
            "planned", and the model states it itself; or "off". What is left out is off.

    Raises:
        ValueError: There is no such attribute or value.
    """

    def __init__(self, attributes: Sequence[Attribute], wanted: Mapping):
        self.planned, self._given = [], {}
        options = {attribute.option: index for index, attribute in enumerate(attributes)}
        self._attributes = attributes
        for option, value in wanted.items():
            if not options:
                raise ValueError(
                    f"{option} ({value}): this model knows no controls; use one that was trained with a tokenizer of "
                    "--tokenizer PerformanceWithControls and control_fraction above 0."
                )
            if option not in options:
                raise ValueError(f"{option} is no control; there are {', '.join(options)}.")
            index = options[option]
            if value is None or value == OFF:
                continue
            if value == PLANNED:
                self.planned.append(index)
            else:
                self._given[index] = _schedule(attributes[index], value)
        self.stated = sorted([*self.planned, *self._given])

    def value(self, index: int, steps: int) -> int | None:
        """Return what is given for an attribute.

        Args:
            index: The attribute.
            steps: Time since the end of the prompt.

        Returns:
            The index of the value; None if it is not given.
        """
        if index not in self._given:
            return None
        number = self.number(index, steps)
        if number is not None:
            return int(self._attributes[index].nearest(number))
        times, values = self._given[index]
        return values[max(np.searchsorted(times, steps / STEPS_PER_SECOND, side="right") - 1, 0)]

    def number(self, index: int, steps: int) -> float | None:
        """Return the number that is given for an attribute, not rounded but within its values; None if none is."""
        if index not in self._given or not self._attributes[index].is_number:
            return None
        low, *_, high = self._attributes[index].values
        return float(min(max(np.interp(steps / STEPS_PER_SECOND, *self._given[index]), low), high))


def _schedule(attribute: Attribute, wanted) -> tuple[list[float], list]:
    """Return the times in seconds and the values of what is wanted: numbers, or the indexes of other values."""
    pairs = wanted if isinstance(wanted, (list, tuple)) else [(0, wanted)]
    try:
        times, values = [float(time) for time, _ in pairs], [value for _, value in pairs]
        if attribute.is_number:
            values = [float(value) for value in values]
            if not np.isfinite(values).all() or min(values) < 0:
                raise ValueError
        else:
            known = [value.lower() for value in attribute.values]
            values = [known.index(str(value).lower()) for value in values]
        if not times or not np.isfinite(times).all() or sorted(times) != times:
            raise ValueError
    except (TypeError, ValueError):
        low, high = attribute.values[0], attribute.values[-1]
        allowed = f"a number ({low} to {high})" if attribute.is_number else f"one of {', '.join(attribute.values)}"
        raise ValueError(
            f"{attribute.option} ({wanted}) must be {allowed}, a list of pairs of seconds and such values in the "
            f'order of time, "{PLANNED}" or "{OFF}".'
        ) from None
    return times, values
