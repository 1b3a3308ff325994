import io
from pathlib import Path

import pytest
from rich.console import Console

from rlmask import display
from rlmask.display import Clock, LiveDisplay, PlainDisplay, duration, short, writing


@pytest.fixture
def now(monkeypatch):
    """A clock that stands still until the test moves it."""
    time = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: time[0])
    return time


def test_the_slow_first_update_does_not_spoil_the_estimate(now):
    clock = Clock()
    clock.start(total=1000, env_steps=0)
    now[0] = 10.0  # envs are made, libraries loaded
    clock.tick(100)
    assert clock.steps_per_second == pytest.approx(10) and clock.seconds_left == pytest.approx(90)
    for update in (2, 3):
        now[0] += 1
        clock.tick(100 * update)
    assert clock.steps_per_second == pytest.approx(100) and clock.seconds_left == pytest.approx(7)


def test_a_resumed_run_counts_its_own_steps_only(now):
    clock = Clock()
    clock.start(total=1000, env_steps=500)
    now[0] = 2.0
    clock.tick(600)
    assert clock.steps_per_second == pytest.approx(50) and clock.seconds_left == pytest.approx(8)


def test_plain_lines_come_every_few_seconds_and_at_the_end(now, capsys):
    lines = PlainDisplay(period_seconds=5.0)
    lines.start(Path("runs/x"), 1000, 0)
    for update in range(1, 11):
        now[0] += 1.0
        lines.update(100 * update, {"rollout/episode_return": 1.5} if update > 1 else {})
    output = capsys.readouterr().out.splitlines()
    assert output[0] == "run directory runs/x"
    assert [int(line.split(" of ")[0].replace(",", "")) for line in output[1:]] == [100, 600, 1000]
    assert "return        -" in output[1] and "return     1.50" in output[2]
    assert "100 steps/s" in output[2] and "0:04 left" in output[2]


def test_the_live_line_shows_steps_return_speed_and_time_left(now):
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    live = LiveDisplay(console)
    live.start(Path("runs/x"), 2_000_000, 0)
    for update in (1, 2):
        now[0] += 10
        live.update(500_000 * update, {"rollout/episode_return": 7.25})
    live.say("a word")
    live.stop()
    text = console.file.getvalue()
    for part in ("runs/x", "1M of 2M steps", "7.25", "50k steps/s", "0:20 left", "a word"):
        assert part in text


def test_a_display_whose_reader_has_gone_is_silent(monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    for name in ("stdout", "stderr"):
        monkeypatch.setattr(display.sys, name, Closed())
    lines = PlainDisplay(period_seconds=0.0)
    lines.start(Path("runs/x"), 1000, 0)
    lines.update(100, {})
    lines.say("a word")
    with pytest.raises(ZeroDivisionError), writing():
        raise ZeroDivisionError  # anything else is heard


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.0, "0"), (999.0, "999"), (1234.0, "1.23k"), (1_234_567.0, "1.23M"), (2e9, "2G")],
)
def test_short_numbers(number, text):
    assert short(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (61.0, "1:01"), (3599.7, "1:00:00"), (7384.0, "2:03:04")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
