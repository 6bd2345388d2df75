import importlib.util
import sys

import numpy as np
import pytest

from gmtool.mixture.patch_kernels import TILE_NUMBA, TILE_TORCH, WORTH_COMPILING, Add, adder, numba_add, torch_add
from gmtool.mixture.patch_moments import (
    READ_BYTES,
    ROW_BYTES,
    SUMS_BYTES,
    TILE,
    WORK_BYTES,
    FittedMode,
    PatchMemory,
    PatchMode,
    least_memory,
    mode_block,
    patch_moments,
    share_memory,
)
from gmtool.mixture.settings import PatchSettings

SHAPE = (2, 3, 4)
MODES = 7
FLOOR = 1e-5


class Patches:
    """Latents in memory that count how often each is read."""

    def __init__(self, n: int = 60, offset: float = 0.0, seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> None:
        rng = np.random.default_rng(seed)
        self.data = (offset + rng.normal(size=(n, *shape)) * rng.uniform(0.1, 3, shape)).astype(np.float16)
        self.shape = shape
        self.mean = self.data.mean(0, dtype=np.float64)
        self.var = self.data.astype(np.float64).var(0)
        self.reads = np.zeros(n, int)

    def patches(self, rows: np.ndarray, out: np.ndarray) -> np.ndarray:
        self.reads[rows] += 1
        out[: len(rows)] = self.data[rows]
        return out[: len(rows)]


def soft(n: int = 60, kept: int = 3, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Assignments modes and probabilities; mode 5 is never kept, and some data keep fewer."""
    rng = np.random.default_rng(seed)
    modes = np.stack([rng.permutation([0, 1, 2, 3, 4, 6])[:kept] for _ in range(n)]).astype(np.int32)
    probabilities = rng.dirichlet(np.ones(kept), n).astype(np.float32)
    probabilities[::4, 1:] = 0
    probabilities /= probabilities.sum(1, keepdims=True)
    modes[probabilities == 0] = 0
    return modes, probabilities


def hard(n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(2).choice([0, 1, 2, 3, 4, 6], (n, 1)).astype(np.int32), np.ones((n, 1), np.float32)


def run(
    source: Patches,
    kept: tuple[np.ndarray, np.ndarray],
    *,
    at_once: int = MODES,
    rows: int = 20,
    threads: int = 2,
    floor: float = FLOOR,
    add: Add = torch_add,
    **settings: float | bool | str,
) -> list[FittedMode]:
    blocks = [mode_block(*kept, first, min(first + at_once, MODES)) for first in range(0, MODES, at_once)]
    return list(
        patch_moments(
            source,
            *kept,
            blocks,
            PatchSettings(**{"shrinkage": 0.0, **settings}),
            floor=floor,
            add=add,
            memory=PatchMemory(at_once, rows),
            threads=threads,
        )
    )


def fitted(*given: object, **settings: object) -> list[PatchMode]:
    return [fitted_mode.patch for fitted_mode in run(*given, **settings)]


def direct(source: Patches, kept: tuple[np.ndarray, np.ndarray], mode: int) -> tuple[float, np.ndarray, np.ndarray]:
    """Mass, mean and variance of a mode from the dense matrix of probabilities."""
    share = (np.where(kept[0] == mode, kept[1], 0)).sum(1).astype(np.float64)
    x = source.data.astype(np.float64)
    mean = np.tensordot(share, x, 1) / share.sum()
    return share.sum(), mean, np.tensordot(share, (x - mean) ** 2, 1) / share.sum()


@pytest.mark.parametrize("kept", [soft(), hard()], ids=["soft", "hard"])
@pytest.mark.parametrize("at_once", [1, 3, 7])
def test_equals_the_direct_computation(kept: tuple[np.ndarray, np.ndarray], at_once: int) -> None:
    source = Patches()
    moments = fitted(source, kept, at_once=at_once)
    assert [moment.mode for moment in moments] == list(range(MODES))
    for moment in moments:
        if moment.mode == 5:
            continue
        _, mean, variance = direct(source, kept, moment.mode)
        assert moment.mean.dtype == moment.std.dtype == np.float32
        np.testing.assert_allclose(moment.mean, mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(moment.std, np.sqrt(variance + FLOOR), rtol=1e-5)


@pytest.mark.parametrize("shape", [(30, 20, 24), (1, 2, TILE + 1)], ids=["several tiles", "a long row"])
@pytest.mark.parametrize("mirror", [False, True])
def test_grids_of_many_entries(mirror: bool, shape: tuple[int, int, int]) -> None:
    """Which are finished in tiles of whole channels, the last one shorter."""
    source, kept = Patches(30, shape=shape), hard(30)
    moments = fitted(source, kept, mirror=mirror)
    if mirror:
        source.data, kept = (
            np.concatenate([source.data, source.data[..., ::-1]]),
            (*(np.tile(e, (2, 1)) for e in kept),),
        )
    for moment in moments:
        if moment.mode != 5:
            _, mean, variance = direct(source, kept, moment.mode)
            np.testing.assert_allclose(moment.mean, mean, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(moment.std, np.sqrt(variance + FLOOR), rtol=1e-5)


@pytest.mark.parametrize("spherical", [False, True])
def test_distances_of_grids_of_many_entries(spherical: bool) -> None:
    """Sums over all tiles, by their definition."""
    source, kept = Patches(30, shape=(30, 20, 24)), hard(30)
    scale = source.var + FLOOR
    for fitted_mode in run(source, kept, shrinkage=2.5, covariance="spherical" if spherical else "diagonal"):
        if fitted_mode.patch.mode == 5:
            continue
        mass, mean, variance = direct(source, kept, fitted_mode.patch.mode)
        within, away = (variance / scale).mean(), ((mean - source.mean) ** 2 / scale).mean()
        given = (mass * variance + 2.5 * source.var) / (mass + 2.5) + FLOOR
        ratio = (given / scale).mean()
        own = np.log(given / scale).mean() + (variance / given).mean()
        log_two_pi = np.log(2 * np.pi)
        expected = (
            (0.5 * (log_two_pi + within + away), within + away + 1),
            (0.5 * (log_two_pi + np.log(ratio) + within / ratio), within + ratio),
            (0.5 * (log_two_pi + own), within + ratio),
        )
        np.testing.assert_allclose(fitted_mode.distances, expected, rtol=1e-6)
        np.testing.assert_allclose(fitted_mode.patch.std, np.sqrt(ratio * scale if spherical else given), rtol=1e-5)


NUMBA = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="needs the extra fast")
ADDERS = [torch_add, pytest.param("numba", marks=[NUMBA, pytest.mark.slow])]


def implementation(add: Add | str) -> Add:
    return numba_add() if add == "numba" else add


@pytest.mark.parametrize("add", ADDERS)
def test_every_float16_number_is_added_exactly(add: Add | str) -> None:
    """In float64, those without a leading one among them, in several tiles."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    x = bits.view(np.float16)[np.isfinite(bits.view(np.float16))]
    assert len(x) > 2 * TILE_TORCH > 2 * TILE_NUMBA
    first, second, shares = np.full(len(x), 1.0), np.zeros(len(x)), np.float32([1 / 3, 1])
    implementation(add)(first, second, np.stack([x, x[::-1]]), np.array([0, 1]), shares)
    values, share = x.astype(np.float64), np.float64(shares[0])
    np.testing.assert_array_equal(first, 1 + share * values + values[::-1])
    np.testing.assert_array_equal(second, share * values * values + values[::-1] * values[::-1])


@NUMBA
@pytest.mark.slow
def test_the_compiled_loop_changes_no_bit() -> None:
    for fitted_mode, other in zip(run(Patches(), soft()), run(Patches(), soft(), add=numba_add()), strict=True):
        np.testing.assert_array_equal(fitted_mode.patch.mean, other.patch.mean)
        np.testing.assert_array_equal(fitted_mode.patch.std, other.patch.std)
        assert fitted_mode.distances == other.distances


def test_without_numba_large_data_are_added_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)  # as if it were not installed
    assert adder(WORTH_COMPILING) is torch_add


def test_threads_change_nothing() -> None:
    one, three = (fitted(Patches(), soft(), threads=threads) for threads in (1, 3))
    for moment, other in zip(one, three, strict=True):
        np.testing.assert_array_equal(moment.mean, other.mean)
        np.testing.assert_array_equal(moment.std, other.std)


def test_a_mode_without_data_has_the_global_moments() -> None:
    source = Patches()
    empty = fitted(source, hard(), shrinkage=4.0)[5]
    np.testing.assert_allclose(empty.mean, source.mean, rtol=1e-6)
    np.testing.assert_allclose(empty.std, np.sqrt(source.var + FLOOR), rtol=1e-6)
    np.testing.assert_array_equal(fitted(source, hard(), shrinkage=0.0)[5].std, empty.std)


def test_shrinkage_formula() -> None:
    source, kept = Patches(), soft()
    for moment in fitted(source, kept, shrinkage=2.5):
        if moment.mode == 5:
            continue
        mass, mean, variance = direct(source, kept, moment.mode)
        shrunk = (mass * variance + 2.5 * source.var) / (mass + 2.5) + FLOOR
        np.testing.assert_allclose(moment.mean, mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(moment.std, np.sqrt(shrunk), rtol=1e-5)


def test_more_shrinkage_ends_at_the_global_variance() -> None:
    source = Patches()
    for moment in fitted(source, hard(), shrinkage=1e12):
        np.testing.assert_allclose(moment.std, np.sqrt(source.var + FLOOR), rtol=1e-5)


def test_spherical_is_one_number_in_normalised_coordinates() -> None:
    source, kept = Patches(), hard()
    scale = source.var + FLOOR
    for moment, diagonal in zip(
        fitted(source, kept, covariance="spherical", shrinkage=1.0), fitted(source, kept, shrinkage=1.0), strict=True
    ):
        ratios = moment.std**2 / scale
        np.testing.assert_allclose(ratios, (diagonal.std**2 / scale).mean(), rtol=1e-5)
        np.testing.assert_array_equal(moment.mean, diagonal.mean)


def test_one_mode_is_the_standard_gaussian_of_normalised_latents() -> None:
    source = Patches()
    kept = np.zeros((60, 1), np.int32), np.ones((60, 1), np.float32)
    only, distances = run(source, kept, shrinkage=4.0)[0].patch, run(source, kept, shrinkage=4.0)[0].distances
    # a Gaussian's entropy, and the squared distance of two draws: what the floor takes off, normalisation does
    for distance in distances:
        assert distance.nats == pytest.approx(
            0.5 * np.log(2 * np.pi) + 0.5 * (source.var / (source.var + FLOOR)).mean()
        )
        assert distance.travel == pytest.approx(2, rel=1e-3)
    np.testing.assert_allclose(only.mean, source.mean, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(only.std**2 / (source.var + FLOOR), 1, rtol=1e-5)


def test_nothing_cancels_far_from_the_origin() -> None:
    # float16 spacing at 2000 is 1: variances of the stored numbers against a mean square of 4 million
    source, kept = Patches(offset=2000.0), soft()
    for moment in fitted(source, kept):
        if moment.mode != 5:
            np.testing.assert_allclose(moment.std, np.sqrt(direct(source, kept, moment.mode)[2] + FLOOR), rtol=1e-4)


def test_order_of_the_data_and_names_of_the_modes_change_nothing() -> None:
    source, (modes, probabilities) = Patches(), soft()
    shuffle = np.random.default_rng(3).permutation(60)
    renamed = np.random.default_rng(4).permutation(MODES).astype(np.int32)
    other = Patches()
    other.data = source.data[shuffle]
    first = fitted(source, (modes, probabilities), shrinkage=1.0)
    second = fitted(other, (renamed[modes[shuffle]], probabilities[shuffle]), shrinkage=1.0)
    for moment in first:
        twin = second[renamed[moment.mode]]
        np.testing.assert_allclose(twin.mean, moment.mean, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(twin.std, moment.std, rtol=1e-6)


def test_memory_bounds_the_reads_and_changes_nothing() -> None:
    kept = soft()
    source, generous = Patches(), Patches()
    tight = fitted(source, kept, rows=1)
    for moment, other in zip(tight, fitted(generous, kept, rows=1000), strict=True):
        np.testing.assert_array_equal(moment.mean, other.mean)
        np.testing.assert_array_equal(moment.std, other.std)
    np.testing.assert_array_equal(source.reads, 1)
    np.testing.assert_array_equal(generous.reads, 1)


def test_the_memory_is_shared_out_and_not_exceeded() -> None:
    entries = 24
    for modes, times in ((1, 1), (7, 1), (7, 3.5), (8192, 1000)):
        memory = times * least_memory(SHAPE)
        share = share_memory(modes, SHAPE, memory)
        taken = SUMS_BYTES * share.modes + ROW_BYTES * share.rows + WORK_BYTES
        assert 0.5 * memory < entries * taken <= memory
        assert min(share.modes, share.rows) >= 1
    assert share_memory(100, SHAPE, entries * (WORK_BYTES + 16 * 4.01 * 3)).modes == 4
    assert share_memory(MODES, SHAPE, entries * (WORK_BYTES + 16 * MODES / 0.75)).modes == MODES
    assert share_memory(MODES, SHAPE, 1e9).modes == MODES
    # a large memory is not filled with data, which would all be read before any is summed
    assert 4 * entries * share_memory(MODES, SHAPE, 1e12).rows <= READ_BYTES


def test_data_that_are_alike_have_the_floor_alone() -> None:
    """However small it is, and whatever their number."""
    source, floor = Patches(49), 1e-30
    source.data[:] = np.float16(0.1)
    patch = fitted(source, (np.zeros((49, 1), np.int32), np.ones((49, 1), np.float32)), floor=floor)[0]
    np.testing.assert_array_equal(patch.mean, np.float32(np.float16(0.1)))
    np.testing.assert_allclose(patch.std, np.sqrt(floor), rtol=1e-6)


def test_hard_assignment_reads_each_datum_once_however_many_blocks() -> None:
    source = Patches()
    fitted(source, hard(), at_once=2)
    np.testing.assert_array_equal(source.reads, 1)


def test_soft_assignment_reads_a_datum_once_a_block_that_needs_it() -> None:
    source, (modes, probabilities) = Patches(), soft()
    fitted(source, (modes, probabilities), at_once=2)
    needed = [len({mode // 2 for mode in row[share > 0]}) for row, share in zip(modes, probabilities, strict=True)]
    np.testing.assert_array_equal(source.reads, needed)


def test_mirrored_data_count_beside_the_data() -> None:
    source, kept = Patches(), soft()
    both = Patches(120)
    both.data = np.concatenate([source.data, source.data[..., ::-1]])
    x = both.data.astype(np.float64)
    both.mean, both.var = x.mean(0), x.var(0)
    twice = tuple(np.concatenate([part, part]) for part in kept)
    for spherical in (False, True):
        stood_in = fitted(source, kept, mirror=True, shrinkage=2.5, covariance="spherical" if spherical else "diagonal")
        for moment, other in zip(stood_in, fitted(both, twice, shrinkage=2.5), strict=True):
            np.testing.assert_allclose(moment.mean, moment.mean[..., ::-1], atol=1e-6)
            np.testing.assert_allclose(moment.mean, other.mean, rtol=1e-5, atol=1e-6)
            if not spherical:
                np.testing.assert_allclose(moment.std, other.std, rtol=1e-5)


def test_distances_are_those_of_draws() -> None:
    rng = np.random.default_rng(0)
    source, (modes, probabilities) = Patches(4000), hard(4000)
    source.data[modes[:, 0] == 2] += 1.5
    x = source.data.astype(np.float64)
    source.mean, source.var = x.mean(0), x.var(0)
    scale = np.sqrt(source.var + FLOOR)
    own = (x[modes[:, 0] == 2] - source.mean) / scale
    for spherical, name in ((False, "diagonal"), (True, "spherical")):
        last_mode = run(
            source, (modes, probabilities), shrinkage=30.0, covariance="spherical" if spherical else "diagonal"
        )[2]
        mean, std = (last_mode.patch.mean - source.mean) / scale, last_mode.patch.std / scale
        for at, spread, distance in (
            (mean, std, getattr(last_mode.distances, name)),
            (0.0 * mean, 0 * std + 1, last_mode.distances.gaussian),
        ):
            nats = 0.5 * np.log(2 * np.pi) + np.log(spread) + 0.5 * ((own - at) / spread) ** 2
            assert distance.nats == pytest.approx(nats.mean(), rel=1e-4)
            draws = at + spread * rng.normal(size=own.shape)
            assert distance.travel == pytest.approx(((own - draws) ** 2).mean(), rel=0.05)
    assert last_mode.distances.diagonal.travel < 0.8 * last_mode.distances.gaussian.travel
