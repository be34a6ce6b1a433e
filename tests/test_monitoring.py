"""The monitor: shares are exact, distances are Kolmogorov's and Smirnov's, and drift begins when it begins."""

import copy
import json
import math
import pickle
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gaia_fast import DriftMonitor, Gaia, GaiaOutput, GaiaScores, GaiaZ, monitoring
from gaia_fast.calibration import Calibration, threshold_for
from gaia_fast.data.digits import held_out_digits
from gaia_fast.errors import ArgumentError, CalibrationError
from gaia_fast.models import digits_resnet

SKETCH_ERROR = 0.0068  # of ranks, at 99 % confidence, with the k that is used


@dataclass
class Clock:
    """A time that passes when told to."""

    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def normal(count: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, size=count)


def monitor_of(scores: np.ndarray, **named: Any) -> DriftMonitor:
    return DriftMonitor(Calibration.of(scores, 0.95), threshold_for(scores), **{"clock": Clock(), **named})


def distance_of(monitor: DriftMonitor) -> float:
    distance = monitor.report().distance
    assert distance is not None
    return distance


def exact_distance(recent: Any, ids: Any) -> float:
    """Of two samples, by its definition."""
    at = np.concatenate([recent, ids])
    cdfs = [np.searchsorted(np.sort(each), at, side="right") / len(each) for each in (recent, ids)]
    return float(np.abs(cdfs[0] - cdfs[1]).max())


# What is compared


@given(
    st.lists(st.integers(-4, 4), min_size=1, max_size=60),
    st.lists(st.integers(-4, 4), min_size=1, max_size=60),
)
def test_of_few_images_the_distance_is_exact_ties_included(ids: list[int], recent: list[int]) -> None:
    monitor = DriftMonitor(Calibration.of(ids, 0.95), clock=Clock())
    monitor.update(recent)
    assert distance_of(monitor) == pytest.approx(exact_distance(recent, ids), abs=1e-12)


@pytest.mark.parametrize("shift", [0.0, 0.1, 1.0, 20.0, -20.0])
@pytest.mark.parametrize("count", [50, 30_000])
@pytest.mark.parametrize("ties", [False, True])
def test_of_many_images_it_is_exact_to_what_is_stated(shift: float, count: int, ties: bool) -> None:
    ids, recent = normal(12_345, 0), normal(count, 1, shift)
    if ties:
        ids, recent = ids.round(), recent.round()
    monitor = monitor_of(ids)
    for part in np.array_split(recent, 10):
        monitor.update(part)
    # Three times the error at 99 %: the sketch draws lots, by no seed.
    allowed = 0.001 + (3 * SKETCH_ERROR if count > 400 else 0.0)
    assert distance_of(monitor) == pytest.approx(exact_distance(recent, ids), abs=allowed)


def test_scores_just_below_one_that_many_images_have() -> None:
    ids = np.concatenate([np.zeros(500), np.arange(1.0, 501.0)])
    recent = np.where(ids == 0, -1e-9, ids)[::5]
    monitor = monitor_of(ids)
    monitor.update(recent)
    assert distance_of(monitor) == pytest.approx(0.5)


def test_what_must_be_exceeded() -> None:
    monitor = monitor_of(normal(1000, 0), alpha=0.01)
    monitor.update(normal(300, 1))
    by_chance = math.sqrt(math.log(2 / 0.01) / 2 * (1 / 300 + 1 / 1000))
    assert monitor.report().critical_distance == pytest.approx(by_chance)

    monitor = monitor_of(normal(5000, 0), alpha=0.01)
    monitor.update(normal(3000, 1))
    by_chance = math.sqrt(math.log(2 / 0.01) / 2 * (1 / 3000 + 1 / 5000))
    assert monitor.report().critical_distance == pytest.approx(by_chance + SKETCH_ERROR + 0.001, abs=1e-4)


@pytest.mark.parametrize(("count", "alpha", "most"), [(200, 0.05, 0.05), (3000, 0.001, 0.01)])
def test_false_alarms_are_as_rare_as_is_asked(count: int, alpha: float, most: float) -> None:
    alarms = 0
    for seed in range(200):
        monitor = monitor_of(normal(1000, 2 * seed), alpha=alpha)
        monitor.update(normal(count, 2 * seed + 1))
        alarms += monitor.report().drifted
    assert alarms <= most * 200


def test_a_tenth_of_a_deviation_is_found() -> None:
    for seed in range(10):
        monitor = monitor_of(normal(20_000, 2 * seed))
        monitor.update(normal(20_000, 2 * seed + 1, shift=0.1))
        assert monitor.report().drifted


def test_the_share_is_exact_and_quantiles_stand_beside_those_of_the_calibration() -> None:
    ids = normal(4000, 0).astype(np.float32)
    monitor, recent = monitor_of(ids), torch.from_numpy(normal(20_000, 1, 0.3).astype(np.float32))
    for part in recent.split(64):
        monitor.update(part)
    report = monitor.report()
    assert report.images == report.total == 20_000
    assert report.ood_share == (recent > threshold_for(ids)).double().mean()
    assert report.expected_ood_share == pytest.approx(0.05)
    for share in monitoring.REPORTED:
        assert report.calibration_quantiles[share] == np.quantile(ids, share, method="inverted_cdf")
        rank = (recent <= report.quantiles[share]).double().mean()
        assert rank == pytest.approx(share, abs=3 * SKETCH_ERROR)


def test_decisions_are_those_of_the_detector_at_the_threshold_itself() -> None:
    tenth = torch.full((3,), 0.1)  # in float32 a little above 0.1
    monitor = DriftMonitor(None, 0.1)
    for same in (tenth, tenth.numpy(), GaiaOutput(torch.zeros(3, 2), tenth, threshold=0.1)):
        monitor.update(same)
    assert monitor.report().ood_share == 0.0


def test_what_is_not_known_is_none() -> None:
    share_only = DriftMonitor(None, 0.5)
    assert share_only.report().ood_share is None
    share_only.update([0.0, 1.0])
    report = share_only.report()
    assert (report.ood_share, report.expected_ood_share, report.distance, report.drifted) == (0.5, None, None, False)
    assert not report.calibration_quantiles

    distance_only = DriftMonitor(Calibration.of(range(100), 0.95))
    assert distance_only.report().distance is None
    distance_only.update(np.arange(100.0))
    report = distance_only.report()
    assert (report.ood_share, report.expected_ood_share, report.distance, report.drifted) == (None, None, 0.0, False)


def test_a_score_that_is_no_number_is_counted_and_stays_out_of_the_distribution() -> None:
    monitor = monitor_of(np.arange(1000.0))
    monitor.update([math.nan, 3.0, math.nan, 999.0])
    monitor.update([math.nan])
    report = monitor.report()
    assert (report.images, report.not_scored, report.ood_share) == (5, 3, 0.8)
    assert (report.quantiles[0.05], report.quantiles[0.95]) == (3.0, 999.0)
    assert monitor.copy().report() == report
    monitor = monitor_of(np.arange(1000.0))
    monitor.update([math.nan] * 10)
    assert monitor.report().distance is None


@pytest.mark.parametrize("scores", [[], torch.zeros(0), np.zeros(0, np.float32)])
def test_no_images(scores: Any) -> None:
    monitor = monitor_of(normal(100, 0))
    monitor.update(scores)
    assert monitor.report().images == 0


@pytest.mark.parametrize(
    "scores",
    [
        [1.0, math.inf],
        torch.tensor([-math.inf]),
        torch.zeros(2, 1),
        torch.tensor(1.0),
        1.0,
        None,
        "scores",
        ["a"],
        {"gaia-z": [1.0]},
        torch.zeros(2, dtype=torch.complex64),
        [[1.0], [1.0, 2.0]],
        GaiaOutput(torch.zeros(1, 2), torch.zeros(1), threshold=7.0),
        GaiaScores(torch.zeros(1, 2), {"gaia-a": torch.zeros(1)}),
    ],
)
def test_what_is_not_scores_is_refused_and_not_counted(scores: Any) -> None:
    monitor = monitor_of(normal(100, 0))
    with pytest.raises(ArgumentError):
        monitor.update(scores)
    assert monitor.report().total == 0


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_scores_of_any_dtype_and_stride(kind: torch.dtype) -> None:
    monitor, scores = DriftMonitor(None, 2.0), torch.arange(8).to(kind)
    monitor.update(scores[::2])
    monitor.update(scores.float().numpy()[::-2])
    assert monitor.report().ood_share == 0.625
    assert monitor.report().quantiles[0.95] == 7.0


# Who is watched


def test_a_detector_and_its_outputs() -> None:
    x = held_out_digits()[0][:64]
    detector = GaiaZ(digits_resnet(pretrained=True), engine="hooks")
    with pytest.raises(CalibrationError, match="calibrate"):
        DriftMonitor(detector)
    detector.calibrate(x)
    monitor = DriftMonitor(detector)
    monitor.update(detector.score(x))
    report = monitor.report()
    assert report.ood_share == detector.is_ood(x).double().mean()
    assert report.distance == 0.0
    with pytest.raises(ArgumentError, match="leave score="):
        DriftMonitor(detector, score="gaia-z")
    with pytest.raises(ArgumentError, match="threshold of|own threshold"):
        DriftMonitor(detector, 1.0)


def test_a_detector_of_several_scores_has_a_monitor_for_each() -> None:
    x = held_out_digits()[0][:64]
    detector = Gaia(digits_resnet(pretrained=True), scores=("gaia-z", "msp"), engine="hooks")
    with pytest.raises(CalibrationError, match="calibrate"):
        DriftMonitor(detector, score="msp")
    detector.calibrate(x)
    output = detector.score(x)
    for name in detector.scores:
        monitor = DriftMonitor(detector, score=name)
        monitor.update(output)
        monitor.update(output.scores[name])
        report = monitor.report()
        assert report.ood_share == detector.is_ood(x)[name].double().mean()
        assert report.distance == 0.0
    with pytest.raises(ArgumentError, match="'gaia-z' or 'msp'"):
        DriftMonitor(detector)


@pytest.mark.parametrize(
    "wrong",
    [
        {"window": 0.0},
        {"window": math.inf},
        {"window": "1h"},
        {"resolution": 0},
        {"resolution": 1.5},
        {"alpha": 0.0},
        {"alpha": 1.0},
        {"alpha": None},
        {"threshold": math.nan},
        {"source": "detector"},
        {"source": Calibration(3, 0.95, torch.zeros(4))},
        {"source": Calibration(3, 0.95, torch.arange(1001.0).flip(0))},
    ],
)
def test_arguments_that_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        DriftMonitor(**{"source": None, "threshold": 1.0, **wrong})


def test_neither_threshold_nor_calibration() -> None:
    with pytest.raises(CalibrationError, match=r"calibrate\(\.\.\.\)"):
        DriftMonitor(None)


# Since when: 1000 calibration images, ten buckets of ten seconds, 200 images each. Those of one drifted bucket are a
# tenth of a window, and what must be exceeded is 0.083.

IDS = np.arange(1000.0)
LIKE_IDS, ABOVE_ALL = IDS[2::5], np.full(200, 2000.0)


def timed() -> tuple[Clock, DriftMonitor]:
    clock = Clock()
    return clock, monitor_of(IDS, clock=clock, window=100.0, resolution=10)


def pass_by(
    clock: Clock, monitor: DriftMonitor, buckets: int, scores: np.ndarray | None, looking: bool = False
) -> None:
    for _ in range(buckets):
        clock.now += 10.0
        if scores is not None:
            monitor.update(scores)
        if looking:
            monitor.report()


@pytest.mark.parametrize("looking", [False, True])
def test_since_when(looking: bool) -> None:
    clock, monitor = timed()
    pass_by(clock, monitor, 30, LIKE_IDS, looking)
    assert not monitor.report().drifted
    assert monitor.report().since is None

    pass_by(clock, monitor, 1, ABOVE_ALL, looking)
    begun = clock.now
    clock.now += 3.0
    assert monitor.report().since == begun
    clock.now -= 3.0
    for _ in range(12):  # at the end three windows after it began
        pass_by(clock, monitor, 3, ABOVE_ALL, looking)
        report = monitor.report()
        assert (report.drifted, report.since) == (True, begun)

    pass_by(clock, monitor, 9, LIKE_IDS, looking)  # one bucket of the window is still drifted
    assert monitor.report().since == begun
    pass_by(clock, monitor, 1, LIKE_IDS, looking)
    report = monitor.report()
    assert (report.drifted, report.since) == (False, None)

    pass_by(clock, monitor, 4, LIKE_IDS, looking)
    pass_by(clock, monitor, 25, ABOVE_ALL, looking)
    assert monitor.report().since == clock.now - 240.0


@pytest.mark.parametrize("looking", [False, True])
def test_buckets_without_images_break_nothing_and_a_window_without_any_does(looking: bool) -> None:
    clock, monitor = timed()
    pass_by(clock, monitor, 10, LIKE_IDS, looking)
    pass_by(clock, monitor, 1, ABOVE_ALL, looking)
    begun = clock.now
    for _ in range(6):
        pass_by(clock, monitor, 7, None, looking)
        pass_by(clock, monitor, 1, ABOVE_ALL, looking)
    assert monitor.report().since == begun
    pass_by(clock, monitor, 9, None, looking)
    assert monitor.report().since == begun
    pass_by(clock, monitor, 1, None, looking)
    report = monitor.report()
    assert (report.images, report.total, report.distance, report.drifted, report.since) == (0, 3400, None, False, None)
    pass_by(clock, monitor, 1, ABOVE_ALL, looking)
    assert monitor.report().since == clock.now

    clock.now += 1e12
    assert monitor.report().since is None
    monitor.update(ABOVE_ALL)
    assert monitor.report().since == clock.now


@pytest.mark.parametrize("looking", [False, True])
def test_one_bucket_is_enough_for_as_long_as_it_is_in_the_window(looking: bool) -> None:
    clock, monitor = timed()
    pass_by(clock, monitor, 20, LIKE_IDS, looking)
    pass_by(clock, monitor, 1, ABOVE_ALL, looking)
    begun = clock.now
    pass_by(clock, monitor, 9, LIKE_IDS, looking)
    pass_by(clock, monitor, 1, ABOVE_ALL, looking)
    pass_by(clock, monitor, 8, LIKE_IDS, looking)
    assert monitor.report().since == begun
    pass_by(clock, monitor, 2, LIKE_IDS, looking)
    assert monitor.report().since is None


@pytest.mark.parametrize("gap", range(8, 32))
def test_a_pause_of_any_length(gap: int) -> None:
    clock, monitor = timed()
    pass_by(clock, monitor, 25, ABOVE_ALL)
    begun = clock.now - 240.0
    clock.now += 10.0 * gap
    monitor.update(ABOVE_ALL)
    assert monitor.report().since == (begun if gap <= 10 else clock.now)


def test_a_clock_that_is_set_back_loses_nothing() -> None:
    clock, monitor = timed()
    pass_by(clock, monitor, 3, LIKE_IDS)
    clock.now -= 1000.0
    monitor.update(LIKE_IDS)
    assert monitor.report().images == 800


def test_what_is_older_than_the_window_goes() -> None:
    clock, monitor = timed()
    pass_by(clock, monitor, 1, ABOVE_ALL)
    pass_by(clock, monitor, 9, LIKE_IDS)
    assert monitor.report().ood_share == pytest.approx(0.1 + 0.9 * 0.05)
    pass_by(clock, monitor, 1, LIKE_IDS)
    report = monitor.report()
    assert (report.images, report.total, report.ood_share) == (2000, 2200, 0.05)


def test_with_one_bucket() -> None:
    clock = Clock()
    monitor = monitor_of(IDS, clock=clock, window=10.0, resolution=1)
    for passed, scores, since in (
        (10, LIKE_IDS, None),
        (20, ABOVE_ALL, 20),
        (30, ABOVE_ALL, 20),
        (40, LIKE_IDS, None),
        (50, ABOVE_ALL, 50),
        (70, ABOVE_ALL, 70),
    ):
        clock.now = 1_000_000.0 + passed
        monitor.update(scores)
        assert monitor.report().since == (None if since is None else 1_000_000.0 + since)


# Several workers


def test_four_workers_together_are_one() -> None:
    clock, one = timed()
    workers = [one.copy() for _ in range(4)]
    for bucket in range(60):
        clock.now += 10.0
        scores = LIKE_IDS if bucket < 35 else ABOVE_ALL
        one.update(scores)
        for k, worker in enumerate(workers):
            if (bucket + k) % 3:  # not each of them has images at all times
                worker.update(scores[k::4])
            else:
                workers[(k + 1) % 4].update(scores[k::4])
    views = [workers[order[0]].copy() for order in ([0, 1, 2, 3], [3, 1, 0, 2])]
    for view, order in zip(views, ([0, 1, 2, 3], [3, 1, 0, 2]), strict=True):
        for k in order[1:]:
            view.merge(workers[k])
    left, right = workers[0].copy().merge(workers[1]), workers[2].copy().merge(workers[3])
    for view in (*views, left.merge(right)):
        expected, found = one.report(), view.report()
        assert found.total == expected.total == 12_000
        assert (found.images, found.ood_share, found.drifted) == (expected.images, expected.ood_share, expected.drifted)
        assert found.distance == pytest.approx(expected.distance, abs=3 * SKETCH_ERROR)
        assert found.critical_distance == pytest.approx(expected.critical_distance)
        # Long ago each had to find it by itself.
        assert found.since == min(worker.report().since or math.inf for worker in workers)
    assert one.report().since == 1_000_000.0 + 360.0


def test_within_the_window_what_no_worker_can_tell_is_told_together() -> None:
    clock, one = timed()
    workers = [one.copy() for _ in range(8)]
    pass_by(clock, one, 10, None)
    for bucket in range(12):
        clock.now += 10.0
        for k, worker in enumerate(workers):
            worker.update((LIKE_IDS if bucket < 11 else ABOVE_ALL)[k::8])
    assert not any(worker.report().drifted for worker in workers)
    view = workers[0].copy()
    for worker in workers[1:]:
        view.merge(worker)
    assert view.report().since == clock.now


def test_merging_leaves_the_other_as_it_is_and_can_be_done_again() -> None:
    clock, first = timed()
    second = first.copy()
    pass_by(clock, first, 3, LIKE_IDS)
    second.update(ABOVE_ALL)
    before = second.report()
    views = [first.copy().merge(second).report() for _ in range(3)]
    assert second.report() == before
    assert [each.total for each in views] == [800] * 3
    assert first.report().total == 600


def test_one_that_has_not_been_asked_for_long() -> None:
    clock, first = timed()
    stale = first.copy()
    pass_by(clock, stale, 5, ABOVE_ALL)
    pass_by(clock, first, 500, LIKE_IDS)
    for view in (first.copy().merge(stale), stale.copy().merge(first)):
        report = view.report()
        assert (report.images, report.total, report.drifted, report.since) == (2000, 101_000, False, None)


def test_what_a_stopped_worker_had_found_ends_with_what_it_saw() -> None:
    clock, first = timed()
    stopped = first.copy()
    pass_by(clock, stopped, 40, ABOVE_ALL)
    pass_by(clock, first, 40, LIKE_IDS)
    pass_by(clock, first, 40, ABOVE_ALL)
    for view in (first.copy().merge(stopped), stopped.copy().merge(first)):
        assert view.report().since == clock.now - 390.0


def test_a_view_that_was_looked_at_takes_in_what_came_from_others() -> None:
    clock, view = timed()
    other = view.copy()
    for bucket in range(15):
        clock.now += 10.0
        view.update(ABOVE_ALL[:100])
        other.update(np.tile(ABOVE_ALL, 50) if bucket > 10 else np.tile(LIKE_IDS, 20))
    assert view.report().since == 1_000_010.0
    assert view.merge(other).report().since == clock.now - 30.0


def test_a_worker_whose_clock_is_ahead() -> None:
    clock, monitor = timed()
    ahead = DriftMonitor.from_bytes(monitor.to_bytes(), clock=Clock(clock.now + 20.0))
    pass_by(clock, monitor, 5, LIKE_IDS)
    ahead._clock = Clock(clock.now + 60.0)
    ahead.update(ABOVE_ALL)
    for view in (monitor.copy().merge(ahead), ahead.copy().merge(monitor)):
        report = view.report()
        assert (report.images, report.total, report.since) == (1000, 1200, clock.now + 60.0)
    assert monitor.report().images == 1000


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("calibration", lambda: monitor_of(IDS * 2, window=100.0)),
        ("calibration", lambda: DriftMonitor(None, 949.0, window=100.0)),
        ("threshold", lambda: DriftMonitor(Calibration.of(IDS, 0.95), 3.0, window=100.0)),
        ("window", lambda: monitor_of(IDS, window=200.0)),
        ("resolution", lambda: monitor_of(IDS, window=100.0, resolution=61)),
        ("alpha", lambda: monitor_of(IDS, window=100.0, alpha=0.5)),
        ("score", lambda: monitor_of(IDS, window=100.0, score="msp")),
        ("no DriftMonitor", lambda: "monitor"),
    ],
)
def test_what_cannot_be_merged(name: str, made: Callable[[], Any]) -> None:
    monitor, other = monitor_of(IDS, window=100.0), made()
    with pytest.raises(ArgumentError, match=name):
        monitor.merge(other)
    assert monitor.merge(monitor_of(IDS.copy(), window=100.0)).report().total == 0


# In many threads, and between processes


def test_threads() -> None:
    monitor, other = monitor_of(IDS), monitor_of(IDS)

    def work() -> None:
        for _ in range(200):
            monitor.update(LIKE_IDS[:50])
            other.update(LIKE_IDS[:50])
            monitor.copy().merge(other)
            monitor.report()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert monitor.report().total == other.report().total == 4 * 200 * 50


def test_two_that_are_merged_into_each_other_do_not_wait_for_each_other() -> None:
    pair = monitor_of(IDS), monitor_of(IDS)
    threads = [
        threading.Thread(target=lambda k=k: [pair[k].merge(pair[1 - k]) for _ in range(50)], daemon=True)
        for k in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)


def test_memory_is_fixed() -> None:
    clock = Clock()
    monitor = monitor_of(normal(1000, 0), clock=clock, window=40.0, resolution=4)
    most = 7 * 11_000 + 8 * 1001 + 1000
    sizes = []
    for seed in range(100):
        clock.now += 4.0
        monitor.update(normal(10_000, seed))
        sizes.append(len(monitor.to_bytes()))
    assert monitor.report().total == 1_000_000
    assert max(sizes) < most
    assert max(sizes[50:]) < 1.2 * max(sizes[25:50])


def used() -> DriftMonitor:
    clock, monitor = timed()
    pass_by(clock, monitor, 12, LIKE_IDS)
    pass_by(clock, monitor, 15, ABOVE_ALL)
    monitor.update([math.nan, 3.0])
    return monitor


@pytest.mark.parametrize(
    "again",
    [
        lambda each: pickle.loads(pickle.dumps(each)),
        copy.copy,
        copy.deepcopy,
        DriftMonitor.copy,
        lambda each: DriftMonitor.from_bytes(each.to_bytes(), clock=each._clock),
        lambda each: DriftMonitor.from_bytes(memoryview(each.to_bytes()), clock=each._clock),
    ],
)
def test_all_that_was_seen_travels(again: Callable[[DriftMonitor], DriftMonitor]) -> None:
    monitor = used()
    report, there = monitor.report(), again(monitor)
    found = there.report()
    assert found.since == report.since == 1_000_130.0
    assert (found.images, found.total, found.ood_share) == (report.images, report.total, report.ood_share)
    assert found.quantiles == pytest.approx(report.quantiles, abs=1000 * 3 * SKETCH_ERROR)
    there.update([1.0])
    assert monitor.report().total == report.total
    assert monitor.merge(there).report().total == 2 * report.total + 1


def test_every_damage_is_refused() -> None:
    monitor = DriftMonitor(Calibration.of(IDS, 0.95), 949.0, clock=Clock())
    monitor.update(LIKE_IDS[:20])
    whole = monitor.to_bytes()
    for end in range(len(whole)):
        with pytest.raises(ArgumentError):
            DriftMonitor.from_bytes(whole[:end])
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        with pytest.raises(ArgumentError):
            DriftMonitor.from_bytes(bytes(damaged))
    for other in (b"", whole + b"\n", whole * 2, pickle.dumps({}), "text", None):
        with pytest.raises(ArgumentError):
            DriftMonitor.from_bytes(other)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"format": 2, "version": "9.9"}, "gaia_fast 9.9, .* later release"),
        ({"window": -1.0}, "window"),
        ({"buckets": 3}, "cannot be read"),
        ({"buckets": []}, "bytes more than it says"),
        ({"calibration": None}, "cannot be read"),
        ({"threshold": None, "calibration": None}, "cannot be read"),
    ],
)
def test_whole_bytes_that_say_what_cannot_be(changed: dict[str, Any], message: str) -> None:
    whole = used().to_bytes()
    line, _, rest = whole[len(monitoring._MAGIC) + monitoring._DIGEST :].partition(b"\n")
    body = json.dumps({**json.loads(line), **changed}).encode() + b"\n" + rest
    with pytest.raises(ArgumentError, match=message):
        DriftMonitor.from_bytes(monitoring._MAGIC + monitoring._digest(body) + body)


# What is read


def test_a_report_as_json_and_as_text() -> None:
    monitor = used()
    report = monitor.report()
    told = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert told["since"] == report.since
    assert told["quantiles"] == {str(share): value for share, value in report.quantiles.items()}
    assert "drifted since 1970-01-12 13:48:50 UTC: distance from the calibration" in str(report)
    assert "2,002 images in the last 100 s (5,402 in all)" in str(report)
    assert "1 not scored" in str(report)

    calm = monitor_of(IDS)
    assert str(calm.report()) == "0 images in the last 3600 s (0 in all)"
    calm.update(LIKE_IDS)
    assert str(calm.report()).splitlines() == [
        "200 images in the last 3600 s (200 in all), 5.0% out of distribution (5.0% expected)",
        "no drift: distance from the calibration 0.002, critical 0.151",
    ]
    assert (
        repr(calm) == "DriftMonitor(threshold=949.0, 1000 calibration images, window=3600, resolution=60, alpha=0.001)"
    )
