import json
import math
import subprocess
import sys

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlmask import log as log_module
from rlmask.log import Log, plot_learning_curve, read_metrics, versions


def write_updates(run_dir, first, last, at=0, value=float):
    """Write updates of 10 env steps each, as a process would that began at update `at`."""
    with Log(run_dir, at) as log:
        for update in range(first, last + 1):
            log.write(update, 10 * update, 0.1 * update, {"loss/value": float(value(update))})
        log.flush()


def scalars(run_dir):
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def test_a_line_an_update(tmp_path):
    with Log(tmp_path, 0) as log:
        log.write(1, 64, 0.12345, {"loss/value": 0.5, "mask/valid_fraction": 1.0})
        log.write(2, 128, 1.0, {"loss/value": 0.25})
    first, second = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(first) == {
        "update": 1,
        "env_steps": 64,
        "seconds": 0.123,
        "loss/value": 0.5,
        "mask/valid_fraction": 1.0,
    }
    assert json.loads(second) == {
        "update": 2,
        "env_steps": 128,
        "seconds": 1.0,
        "loss/value": 0.25,
    }


def test_a_figure_keeps_every_bit(tmp_path):
    value = 0.1 + 0.2
    write_updates(tmp_path, 1, 1, value=lambda update: value)
    assert read_metrics(tmp_path)[0]["loss/value"] == value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_null(tmp_path, value):
    write_updates(tmp_path, 1, 1, value=lambda update: value)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert '"loss/value": null' in text
    json.loads(text, parse_constant=pytest.fail)  # called for NaN and Infinity


def test_after_a_flush_everything_can_be_read(tmp_path):
    with Log(tmp_path, 0) as log:
        log.write(1, 10, 0.1, {"loss/value": 1.0})
        log.flush()
        assert len(read_metrics(tmp_path)) == 1
        assert scalars(tmp_path) == {"loss/value": [(10, 1.0)]}


def test_what_came_after_the_checkpoint_is_written_again(tmp_path):
    write_updates(tmp_path, 1, 5)
    write_updates(tmp_path, 4, 6, at=3, value=lambda update: -update)
    records = read_metrics(tmp_path)
    assert [record["update"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert [record["loss/value"] for record in records] == [1, 2, 3, -4, -5, -6]
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "tensorboard"}


def test_a_run_from_scratch_forgets_what_was_written(tmp_path):
    write_updates(tmp_path, 1, 2)
    write_updates(tmp_path, 1, 1, value=lambda update: -1)
    assert [record["loss/value"] for record in read_metrics(tmp_path)] == [-1]


def test_lines_that_are_kept_do_not_change(tmp_path):
    write_updates(tmp_path, 1, 3, value=lambda update: update / 3)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    Log(tmp_path, 3).__exit__()
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_last_line_that_was_cut_is_left_out(tmp_path, cut):
    write_updates(tmp_path, 1, 3)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-1][:-cut])
    assert [record["update"] for record in read_metrics(tmp_path)] == [1, 2]
    write_updates(tmp_path, 3, 3, at=2)
    assert [record["update"] for record in read_metrics(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize("end", [b"\0" * 50, b"\xff\xfe"])
def test_bytes_that_a_crash_left_behind_are_left_out(tmp_path, end):
    write_updates(tmp_path, 1, 2)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(end)
    assert [record["update"] for record in read_metrics(tmp_path)] == [1, 2]


def test_without_a_file_there_are_no_metrics(tmp_path):
    assert read_metrics(tmp_path) == []


def test_tensorboard_has_the_scalars_over_env_steps(tmp_path):
    with Log(tmp_path, 0) as log:
        log.write(1, 64, 0.1, {"loss/value": 0.5, "rollout/episode_return": -3.0})
        log.write(2, 128, 0.2, {"loss/value": 0.25})
    assert scalars(tmp_path) == {
        "loss/value": [(64, 0.5), (128, 0.25)],
        "rollout/episode_return": [(64, -3.0)],
    }


@pytest.mark.parametrize("at", [0, 1, 3, 5])
def test_tensorboard_has_every_update_of_a_resumed_run_once(tmp_path, at):
    write_updates(tmp_path, 1, 5)
    write_updates(tmp_path, at + 1, 6, at=at, value=lambda update: -update)
    expected = [(10 * update, update if update <= at else -update) for update in range(1, 7)]
    assert scalars(tmp_path) == {"loss/value": expected}


def test_the_learning_curve_is_a_picture(tmp_path):
    with Log(tmp_path, 0) as log:
        log.write(1, 64, 0.1, {"loss/value": 1.0})  # before the first episode has ended
        for update in range(2, 10):
            evaluated = {"eval/mean_return": 2.0 * update} if update % 4 == 0 else {}
            log.write(
                update, 64 * update, 0.1, {"rollout/episode_return": 1.0 * update, **evaluated}
            )
    path = plot_learning_curve(tmp_path)
    assert path == tmp_path / "learning_curve.png"
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert min(image.size) > 400
        colors = image.convert("RGB").getcolors(image.width * image.height)
    assert len(colors) > 50  # not a white page


@pytest.mark.parametrize(
    "metrics",
    [
        {},
        {"rollout/episode_return": math.nan},
        {"rollout/episode_return/A-v0": 1.0, "eval/mean_return/A-v0": 2.0},
        {f"eval/mean_return/{name}": 1.0 for name in "ABCDEFG"},
        {"eval/mean_return/$x_^{": 1.0, "eval/mean_return/_a": 2.0},
    ],
    ids=["nothing", "no number", "a game", "many games", "odd names"],
)
def test_a_learning_curve_of_whatever_there_is(tmp_path, metrics):
    write = Log(tmp_path, 0)
    write.write(1, 64, 0.1, metrics)
    write.__exit__()
    assert plot_learning_curve(tmp_path).stat().st_size > 1000


def test_each_game_has_a_panel_of_its_own(tmp_path, monkeypatch):
    """Returns of 3,000 and of 3 cannot be read off one axis."""
    drawn = []
    monkeypatch.setattr(
        "rlmask.log._plot_game", lambda axes, records, names: drawn.append((axes, names))
    )
    with Log(tmp_path, 0) as log:
        log.write(1, 64, 0.1, {f"eval/mean_return/{game}": 1.0 for game in ("A-v0", "b:B-v0-3")})
        log.write(2, 64, 0.1, {f"rollout/episode_return/{game}": 1.0 for game in ("A-v0", "C")})
    plot_learning_curve(tmp_path)
    assert [names for _, names in drawn] == [
        ["eval/mean_return/A-v0", "rollout/episode_return/A-v0"],
        ["rollout/episode_return/C"],
        ["eval/mean_return/b:B-v0-3"],
    ]
    assert [axes.get_title("left") for axes, _ in drawn] == ["A-v0", "C", "b:B-v0-3"]


def test_a_learning_curve_of_a_run_without_metrics(tmp_path):
    assert plot_learning_curve(tmp_path).is_file()


def test_versions(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rlmask", "train", "x.yaml"])
    found = versions()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["command"] == ["rlmask", "train", "x.yaml"]
    for name in ("rlmask", "torch", "numpy", "gymnasium", "safetensors"):
        assert found[name] == __import__(name).__version__
    json.dumps(found)


def test_an_install_inside_of_another_checkout_has_no_commit(monkeypatch, tmp_path):
    name = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a", "GIT_COMMITTER_NAME": "a"}
    for key, value in {**name, "GIT_COMMITTER_EMAIL": "a"}.items():
        monkeypatch.setenv(key, value)
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "somebody's"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    (tmp_path / "log.py").touch()
    monkeypatch.setattr(log_module, "__file__", str(tmp_path / "log.py"))
    assert versions()["git_commit"] is None
    subprocess.run(["git", "-C", str(tmp_path), "add", "log.py"], check=True)
    assert versions()["git_commit"].endswith("+")  # a checkout of its own, with changes


def test_versions_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert versions()["git_commit"] is None
