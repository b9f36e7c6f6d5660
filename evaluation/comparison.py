"""Compare two sets of music by the distances from piece to piece, within a set and between the sets.

If both sets have the same distribution, the densities of both kinds of distances overlap fully, and their divergence
is zero. A bootstrap over the pieces gives intervals.

Shape letters: N pieces, R pieces of the reference, D values of a statistic, G points of a grid, S resamples.

Source: Yang & Lerch 2020, On the evaluation of generative models in music, section 3.2.
"""

from typing import NamedTuple

import numpy as np

# Points at which densities are taken: some twenty for the width of the kernel that half a million distances have.
GRID = 2048

# Resamples of the pieces of the first set, and the share of them that an interval covers.
RESAMPLES, CONFIDENCE = 1000, 0.95

# The least density, as a share of all, that a divergence divides by: far in a tail it would underflow to zero.
FLOOR = 1e-12


class Estimate(NamedTuple):
    """An estimate with its bootstrap interval.

    Args:
        value: The number.
        low: The lower end of the interval.
        high: The upper end.
    """

    value: float
    low: float
    high: float


class Comparison(NamedTuple):
    """The comparison of a set of pieces with a reference in one statistic.

    Args:
        overlap: Area under both densities, 0 to 1.
        divergence: Kullback-Leibler divergence from the distances between the sets to those within the reference, in
            nats; 0 if they are alike.
    """

    overlap: Estimate
    divergence: Estimate


def compare(pieces: np.ndarray, reference: np.ndarray, seed: int = 0) -> Comparison:
    """Compare the distances between two sets with those within the second.

    Args:
        pieces: A statistic of each piece of the first set, `[N]` or `[N, D]`.
        reference: The same of another set, `[R]` or `[R, D]`.
        seed: Of the bootstrap, which draws pieces of the first set; the second one is taken as it is.

    Returns:
        The comparison.

    Raises:
        ValueError: The reference has fewer than two pieces, or the other set has none.
    """
    if len(pieces) < 1 or len(reference) < 2:
        raise ValueError(f"{len(pieces)} pieces, {len(reference)} in the reference; needed are at least 1 and 2.")
    between = _distances(pieces, reference)  # [N, R]
    within = _distances(reference, reference)[np.triu_indices(len(reference), 1)][None]  # [1, R (R - 1) / 2]
    kernels = [_scott(distances) for distances in (between, within)]
    # A kernel reaches beyond the distances, at both ends.
    margin = 4 * max(kernels)
    low, high = -margin, max(between.max(), within.max()) + margin or 1.0
    between, within = (_histograms(distances, low, high) for distances in (between, within))

    draws = np.random.default_rng(seed).multinomial(len(between), np.full(len(between), 1 / len(between)), RESAMPLES)
    # The whole set first, then the resamples, [1 + S, G].
    between = np.concatenate([np.ones((1, len(between))), draws]) @ between / len(between)
    q, p = (_smooth(shares, kernel / (high - low)) for shares, kernel in zip((between, within), kernels, strict=True))
    overlap = np.minimum(p, q).sum(axis=-1)
    divergence = (p * np.log((p + FLOOR) / (q + FLOOR))).sum(axis=-1)
    return Comparison(_estimate(overlap), _estimate(divergence))


def _distances(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Euclidean distances, `[N]` or `[N, D]` and `[R]` or `[R, D]` to `[N, R]`."""
    some, others = (np.asarray(values, dtype=float).reshape(len(values), -1) for values in (some, others))
    # A dimension at a time, for all at once would take D times the memory.
    square = np.zeros((len(some), len(others)))
    for column, other in zip(some.T, others.T, strict=True):
        square += (column[:, None] - other) ** 2
    return np.sqrt(square)


def _scott(distances: np.ndarray) -> float:
    """The width of the Gaussian kernel, by Scott's rule."""
    return float(distances.std(ddof=1) * distances.size**-0.2) if distances.size > 1 else 0.0


def _histograms(distances: np.ndarray, low: float, high: float) -> np.ndarray:
    """Share of each row's distances that lie next to each point of the grid, `[N, R]` to `[N, G]`."""
    place = np.minimum(((distances - low) * (GRID / (high - low))).astype(int), GRID - 1)
    place += GRID * np.arange(len(place))[:, None]
    return np.bincount(place.ravel(), minlength=GRID * len(place)).reshape(-1, GRID) / distances.shape[1]


def _smooth(shares: np.ndarray, kernel: float) -> np.ndarray:
    """Turn histograms into densities: convolve with a Gaussian whose width is a share of the grid's, `[..., G]`."""
    frequency = np.fft.rfftfreq(GRID, 1 / GRID)
    density = np.fft.irfft(np.fft.rfft(shares) * np.exp(-2 * (np.pi * kernel * frequency) ** 2), GRID)
    return np.maximum(density, 0)


def _estimate(values: np.ndarray) -> Estimate:
    """The first value, and where the middle share of the others lies."""
    tail = (1 - CONFIDENCE) / 2
    return Estimate(float(values[0]), *map(float, np.quantile(values[1:], (tail, 1 - tail))))
