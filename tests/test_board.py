import io

import pytest
from rich.console import Console

from rlmask import board
from rlmask.board import Board, figure


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is told."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_without_a_terminal_there_is_a_line_now_and_then(clock, capsys):
    shown = Board(Console(file=io.StringIO()))
    shown.begin({"Snake": 1_000_000})
    shown.start("Snake")
    shown.progress("Snake", 0, {})
    for step in range(1, 13):
        clock[0] += 10
        shown.progress("Snake", 10_000 * step, {"rollout/episode_return": 3.0})
        shown.progress("Snake", 10_000 * step, {"rollout/episode_return": 3.0})  # looked at again
    shown.finish("Snake")
    shown.end()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Snake: 1M env steps"
    assert lines[-1] == "Snake: done"
    assert len(lines) == 4  # one at 60 seconds, one at 120
    # 1,000 steps a second: 880,000 are left at the end
    assert lines[2] == "Snake: 120k of 1M  return 3.00  1k steps/s  14:40 left"


def test_before_the_second_figure_no_speed_is_said(clock, capsys, monkeypatch):
    monkeypatch.setattr(board, "PLAIN_SECONDS", 0.0)
    shown = Board(Console(file=io.StringIO()))
    shown.begin({"a": 100})
    shown.start("a")
    shown.progress("a", 50, {"loss/distill": 0.25})
    assert capsys.readouterr().out.splitlines()[1] == "a: 50 of 100  loss 0.250"


def test_on_a_terminal_every_run_has_a_bar():
    stream = io.StringIO()
    shown = Board(Console(file=stream, force_terminal=True, width=120))
    shown.begin({"Snake": 100, "Tetris": 100})
    shown.start("Snake")
    shown.progress("Snake", 40, {"loss/distill": 0.5})
    shown.say("news")
    shown.finish("Snake")
    shown.end()
    text = stream.getvalue()
    for word in ("Snake", "Tetris", "waiting", "news", "done"):
        assert word in text
    shown.end()  # twice is no error


def test_a_student_shows_its_loss_and_others_their_return():
    assert figure({"loss/distill": 0.1234, "rollout/episode_return/a": 1.0}) == "loss 0.123"
    assert (
        figure({"rollout/episode_return/a": 1.0, "rollout/episode_return/b": 3.0}) == "return 2.00"
    )
    assert figure({}) == "return -"
