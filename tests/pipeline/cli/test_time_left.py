"""The estimate of the time left, with times that the tests make up."""

from __future__ import annotations

import pytest

from pipeline.cli.time_left import TimeLeft, about, in_words

pytestmark = pytest.mark.unit
USUAL_S = {"annotate": 200.0, "merge": 1.0, "train": 100.0}


@pytest.fixture
def time_left() -> TimeLeft:
    return TimeLeft(list(USUAL_S), USUAL_S)


def test_at_first_it_is_the_usual_time(time_left: TimeLeft) -> None:
    time_left.begin(["annotate"], 10.0, 0.0)
    assert time_left.left(10.0, 0.0) == 301
    assert time_left.left(60.0, 0.0) == 251


def test_a_slow_machine_shows_in_the_first_step(time_left: TimeLeft) -> None:
    time_left.begin(["annotate"], 0.0, 0.0)
    time_left.left(50.0, 0.01)  # models are loaded
    # 19 % in 100 s: 80 % take 421 s, so the step 571 s, and the others as many times their usual time.
    assert time_left.left(150.0, 0.20) == pytest.approx(421 + 571 / 200 * 101, rel=0.01)


def test_the_finished_steps_scale_the_others(time_left: TimeLeft) -> None:
    time_left.begin(["annotate"], 0.0, 0.0)
    time_left.end(400.0)
    time_left.begin(["merge"], 400.0, 0.0)
    time_left.end(400.1)  # too short to say anything
    time_left.begin(["train"], 401.0, 0.0)
    assert time_left.left(401.0, 0.0) == 200
    assert time_left.left(451.0, 0.0) == 150
    assert time_left.left(900.0, 0.0) == 20  # never nothing, nor less


def test_skipped_and_resumed_steps_say_nothing_of_the_machine(time_left: TimeLeft) -> None:
    time_left.begin(["annotate"], 0.0, 0.9)
    assert time_left.left(0.0, 0.9) == pytest.approx(20 + 101)
    time_left.end(20.0)
    time_left.skip("merge")
    time_left.begin(["train"], 20.0, 0.0)
    assert time_left.left(20.0, 0.0) == 100


def test_steps_at_the_same_time_count_together(time_left: TimeLeft) -> None:
    time_left.begin(["annotate", "train"], 0.0, 0.0)
    assert time_left.left(0.0, 0.0) == 301
    time_left.end(600.0)  # twice as long as usual
    time_left.begin(["merge"], 600.0, 0.0)
    assert time_left.left(600.0, 0.0) == 2


def test_steps_of_unknown_duration_have_no_estimate() -> None:
    time_left = TimeLeft(["annotate", "other"], USUAL_S)
    time_left.begin(["annotate"], 0.0, 0.0)
    assert time_left.left(5.0, 0.5) is None


def test_durations_in_words() -> None:
    assert [in_words(seconds) for seconds in (0.2, 59.4, 196)] == ["0 s", "59 s", "3 min 16 s"]
    assert [about(seconds) for seconds in (3, 46, 95, 301)] == [
        "less than a minute",
        "about 1 min",
        "about 2 min",
        "about 5 min",
    ]
