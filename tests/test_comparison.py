"""Sets of pieces compared, against densities computed point by point and against what must be so."""

import itertools
import math

import numpy as np
import pytest

from evaluation.comparison import compare


def densities_by_brute_force(distances, grid):
    """A sum of Gaussians, one around each distance, of the width that Scott's rule gives."""
    width = np.std(distances, ddof=1) * len(distances) ** -0.2
    kernels = np.exp(-(((grid[:, None] - distances) / width) ** 2) / 2)
    return kernels.sum(axis=1) / (len(distances) * width * math.sqrt(2 * math.pi))


@pytest.mark.parametrize("shape", [(), (3,)])
def test_overlap_and_divergence_equal_those_of_densities_computed_point_by_point(shape):
    random = np.random.default_rng(0)
    pieces, reference = random.normal(0.7, 1.2, (12, *shape)), random.normal(0, 1, (15, *shape))
    between = np.array([math.dist(np.ravel(one), np.ravel(other)) for one in pieces for other in reference])
    within = np.array(
        [math.dist(np.ravel(one), np.ravel(other)) for one, other in itertools.combinations(reference, 2)]
    )
    grid = np.linspace(-5, 15, 4001)
    p, q = densities_by_brute_force(within, grid), densities_by_brute_force(between, grid)
    found = compare(pieces, reference)
    assert found.overlap.value == pytest.approx(np.trapezoid(np.minimum(p, q), grid), abs=2e-3)
    assert found.divergence.value == pytest.approx(np.trapezoid(p * np.log((p + 1e-15) / (q + 1e-15)), grid), abs=5e-3)


def test_music_of_one_kind_overlaps_and_other_music_does_not():
    random = np.random.default_rng(1)
    reference = random.normal(size=200)
    same, other = compare(random.normal(size=100), reference), compare(random.normal(9, 1, size=100), reference)
    assert same.overlap.value > 0.95
    assert same.divergence.value < 0.02
    assert other.overlap.value < 0.01
    assert other.divergence.value > 5


def test_the_same_piece_again_and_again_is_not_like_a_set_whose_mean_it_is():
    reference = np.random.default_rng(2).normal(size=200)
    assert compare(np.zeros(64), reference).overlap.value < 0.85


def test_more_pieces_make_the_interval_narrower():
    random = np.random.default_rng(3)
    reference = random.normal(size=100)
    few, many = (compare(random.normal(1, 1, size=count), reference).overlap for count in (10, 1000))
    assert few.low < few.value < few.high
    assert many.high - many.low < (few.high - few.low) / 4


def test_the_interval_holds_what_other_sets_of_the_kind_have():
    random = np.random.default_rng(4)
    reference = random.normal(size=100)
    truth = compare(random.normal(1, 1, size=2000), reference).overlap.value
    intervals = [compare(random.normal(1, 1, size=40), reference, seed).overlap for seed in range(20)]
    assert sum(low < truth < high for _, low, high in intervals) >= 17


def test_a_seed_decides_the_interval_and_nothing_else():
    random = np.random.default_rng(5)
    pieces, reference = random.normal(size=20), random.normal(size=20)
    assert compare(pieces, reference, seed=1) == compare(pieces, reference, seed=1)
    assert compare(pieces, reference, seed=1).overlap.value == compare(pieces, reference, seed=2).overlap.value
    assert compare(pieces, reference, seed=1).overlap != compare(pieces, reference, seed=2).overlap


def test_sets_in_which_all_are_equal_are_alike():
    found = compare(np.zeros(5), np.zeros(6))
    assert found.overlap == pytest.approx((1, 1, 1))
    assert found.divergence == pytest.approx((0, 0, 0), abs=1e-9)


@pytest.mark.parametrize(("pieces", "reference"), [(0, 5), (5, 1)])
def test_sets_without_distances_are_refused(pieces, reference):
    with pytest.raises(ValueError, match="needed are at least"):
        compare(np.zeros(pieces), np.zeros(reference))
