from __future__ import annotations

import pytest

from fanfare.runtime import histograms


def test_durations_are_counted_in_cumulative_buckets() -> None:
    histogram = histograms.Histogram()
    for seconds in (0.0002, 0.0002, 0.003, 100.0, -1.0):
        histogram.observe(seconds)
    found, sum_s = histograms.buckets(histogram.counters("x"), "x")
    by_bound = dict(found)
    assert by_bound["0.0001"] == 1  # a clock that was set back counts as no time
    assert by_bound["0.00025"] == by_bound["0.0025"] == 3
    assert by_bound["0.005"] == by_bound["30"] == 4
    assert by_bound["+Inf"] == 5
    assert sum_s == pytest.approx(100.0034)


def test_a_histogram_without_observations_has_no_counters() -> None:
    assert histograms.Histogram().counters("x") == {}
    assert histograms.quantile({}, "x", 0.5) is None


@pytest.mark.parametrize("began", [[9.0, 9.001, 9.0005], [1.0, 9.999, 5.0], [10.5, 0.0001, 9.0, 9.99, 9.99, 9.5]])
def test_durations_of_a_group_are_counted_as_one_by_one(began: list[float]) -> None:
    together, single = histograms.Histogram(), histograms.Histogram()
    together.observe_since(began, 10.0)
    for time_s in began:
        single.observe(10.0 - time_s)
    found, expected = together.counters("x"), single.counters("x")
    assert found.pop("x.sum") == pytest.approx(expected.pop("x.sum"))
    assert found == expected


def test_milliseconds_are_converted() -> None:
    histogram = histograms.Histogram()
    histogram.observe_since([1_000], 3_000, 1000)
    assert histogram.counters("x") == {"x.2.5": 1, "x.sum": 2.0}


def test_sums_of_several_workers_are_one_histogram() -> None:
    first, second = histograms.Histogram(), histograms.Histogram()
    first.observe(0.2)
    second.observe(0.2)
    second.observe(3.0)
    total: dict[str, int | float] = {}
    for counters in (first.counters("x"), second.counters("x")):
        for name, value in counters.items():
            total[name] = total.get(name, 0) + value
    found, sum_s = histograms.buckets(total, "x")
    assert dict(found)["0.25"] == 2
    assert dict(found)["+Inf"] == 3
    assert sum_s == pytest.approx(3.4)


def test_bound_of_another_release_counts_into_the_next_larger_one() -> None:
    found = dict(histograms.buckets({"x.0.3": 2, "x.sum": 0.6}, "x")[0])
    assert (found["0.25"], found["0.5"]) == (0, 2)


def test_quantiles_are_interpolated_within_a_bucket() -> None:
    histogram = histograms.Histogram()
    for _ in range(100):
        histogram.observe(0.2)
    counters = histogram.counters("x")
    assert histograms.quantile(counters, "x", 0.5) == pytest.approx(0.175)
    assert histograms.quantile(counters, "x", 1.0) == pytest.approx(0.25)
    histogram.observe(60.0, 900)
    assert histograms.quantile(histogram.counters("x"), "x", 0.99) == histograms.BOUNDS_S[-1]
