"""The arithmetic of the elastic benchmark, on two actors of which one is lost with its node."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.elastic import ActorLife, Window, lives, windows

pytestmark = pytest.mark.unit


def test_the_last_use_of_a_lost_gpu_ends_with_its_node(tmp_path: Path) -> None:
    (tmp_path / "1").write_text("here 100\n102 106\n106 110\n")
    (tmp_path / "2").write_text("lost 103\n104 108\n108 ")
    (tmp_path / "3").write_text("here 104\n")
    killed = {"lost": 109.0}
    assert lives(tmp_path, killed) == [
        ActorLife("here", 100, 110, [(102, 106), (106, 110)]),
        ActorLife("lost", 103, 109, [(104, 108), (108, 109)]),
        ActorLife("here", 104, 104, []),
    ]


def test_windows_end_where_an_actor_comes_or_goes() -> None:
    """The first actor is ready at 100, but the run's first batch begins at 102."""
    first = ActorLife("here", 100, 110, [(102, 106), (106, 110)])
    second = ActorLife("lost", 103, 109, [(104, 108), (108, 109)])
    assert windows([first, second], at_least_s=1) == [
        Window(1, 1, 1.0),
        Window(6, 2, (6 + 5) / 12),
        Window(1, 1, 1.0),
    ]
    assert [window.seconds for window in windows([first, second], at_least_s=2)] == [6]
    assert windows([], at_least_s=1) == []
