import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from envs_for_tests import env_id
from PIL import Image

from rlmask import __version__, cli, commands, run, runs
from rlmask.cli import main
from rlmask.vector import Game

FIGURES = ["mean_return", "standard_error", "episodes", "mean_length", "invalid_actions"]

CONFIG = """\
algo: ppo
env: Taxi-v4
env_kwargs: {max_episode_steps: 20}
num_envs: 2
num_steps: 16
num_minibatches: 2
total_steps: 32
hidden_sizes: [8]
eval_episodes: 2
device: cpu
"""


@pytest.fixture(autouse=True)
def _workplace(tmp_path, monkeypatch):
    """Every test starts in an empty directory that has a config."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one update."""
    directory = tmp_path_factory.mktemp("trained")
    (directory / "config.yaml").write_text(CONFIG)
    assert main(["train", f"{directory}/config.yaml", "--run-dir", f"{directory}/run"]) == 0
    return directory / "run"


@pytest.fixture
def rlmask(capsys):
    """Run a command; return exit code, output and errors."""

    def command(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return (code, *capsys.readouterr())

    return command


@pytest.fixture
def refusal(rlmask):
    """Run a command that is refused; return the line that says why."""

    def command(*arguments):
        before = sorted(Path().rglob("*"))
        code, _, errors = rlmask(*arguments)
        assert code == 2
        assert_one_line(errors)
        assert sorted(Path().rglob("*")) == before, "something was left behind"
        return errors

    return command


def assert_one_line(errors):
    assert errors.startswith("rlmask: ")
    assert errors.count("\n") == 1
    assert errors.endswith("\n")
    assert "Traceback" not in errors


def write_config(**changes):
    lines = [line for line in CONFIG.splitlines() if line.split(":")[0] not in changes]
    lines += [f"{name}: {value}" for name, value in changes.items() if value is not None]
    Path("config.yaml").write_text("\n".join(lines))
    return "config.yaml"


def flip(path):
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


# help


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_the_commands(rlmask, arguments):
    code, output, errors = rlmask(*arguments)
    assert (code, errors) == (0, "")
    for command in ("train", "eval", "check-env", "envs"):
        assert f"rlmask {command}" in output


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train", ["--learning-rate", "--run-dir", "--checkpoint-seconds", "--resume"]),
        ("eval", ["--episodes", "--without-mask", "--video", "--json"]),
        ("distill", ["--directory", "--num-workers"]),
        ("transfer", ["--seeds", "--directory"]),
        ("record", ["--stochastic", "--states"]),
        ("export", ["--format", "--int8", "--output"]),
        ("check-env", ["--env-kwargs", "--steps"]),
        ("envs", []),
    ],
)
def test_every_command_has_help(rlmask, command, words):
    code, output, errors = rlmask(command, "--help")
    assert (code, errors) == (0, "")
    assert f"usage: rlmask {command}" in output
    for word in words:
        assert word in output


def test_help_of_train_shows_the_settings_of_the_config(rlmask):
    code, output, _ = rlmask("train", write_config(learning_rate=0.0625), "--help")
    assert code == 0
    assert "0.0625" in output


def test_version(rlmask):
    assert rlmask("--version") == (0, f"rlmask {__version__}\n", "")


# train and eval


def test_train_says_where_everything_is(rlmask):
    code, output, errors = rlmask("train", "config.yaml", "--run-dir", "run")
    assert (code, errors) == (0, "")
    assert "run directory run\n" in output
    assert "32 of 32 steps" in output
    assert "final evaluation, greedy" in output
    for name in ("tensorboard", "learning_curve.png", "checkpoints/000001"):
        assert f"run/{name}" in output
        assert Path("run", name).exists()


@pytest.mark.parametrize(
    ("env", "words"),
    [("Taxi-v4", "Taxi-v4: masks from `info`"), ("CartPole-v1", "CartPole-v1: no mask found")],
)
def test_train_says_once_where_the_masks_are(rlmask, env, words):
    config = write_config(env=env)
    _, output, _ = rlmask("train", config, "--run-dir", "run")
    assert output.count(words) == 1


def test_flags_override_the_config(rlmask):
    flags = ["--total-steps", "64", "--learning-rate", "1e-3", "--hidden-sizes", "4", "3"]
    flags += ["--env-kwargs", "{max_episode_steps: 10}", "--no-anneal-learning-rate"]
    code, _, errors = rlmask("train", "config.yaml", *flags, "--run-dir", "run")
    assert (code, errors) == (0, "")
    settings = run.read_config(Path("run")).settings
    assert settings.total_steps == 64
    assert settings.learning_rate == 0.001
    assert settings.hidden_sizes == (4, 3)
    assert settings.env_kwargs == {"max_episode_steps": 10}
    assert not settings.anneal_learning_rate
    assert settings.num_envs == 2  # from the config


def test_games_on_the_command_line(rlmask):
    games = (
        "[{env_id: Taxi-v4, env_kwargs: {max_episode_steps: 5}, action_ids: [0, 1, 2, 3, 4, 5]}, "
        "{env_id: FrozenLake-v1, action_ids: [6, 0, 1, 2]}]"
    )
    flags = ["--env", "", "--games", games, "--num-actions", "7", "--run-dir", "run"]
    code, _, errors = rlmask("train", write_config(env_kwargs=None), *flags)
    assert (code, errors) == (0, "")
    assert [game.env_id for game in run.read_config(Path("run")).settings.games] == [
        "Taxi-v4",
        "FrozenLake-v1",
    ]
    code, output, _ = rlmask("eval", "run", "--episodes", "2")
    assert code == 0
    assert "eval/mean_return/Taxi-v4" in output
    assert "eval/mean_return/FrozenLake-v1" in output


def test_without_a_run_directory_the_run_goes_below_runs(rlmask):
    code, output, _ = rlmask("train", "config.yaml", "--seed", "3")
    assert code == 0
    (run_dir,) = Path("runs").iterdir()
    assert run_dir.name.startswith("config-3-")
    assert f"run directory {run_dir}\n" in output


def test_resume_of_a_complete_run_evaluates_it(rlmask, trained):
    shutil.copytree(trained, "run")
    metrics = Path("run/metrics.jsonl").read_bytes()
    code, output, errors = rlmask("train", "--resume", "run")
    assert (code, errors) == (0, "")
    assert "final evaluation" in output
    assert Path("run/metrics.jsonl").read_bytes() == metrics


def test_eval_prints_a_table(rlmask, trained):
    code, output, errors = rlmask("eval", trained, "--episodes", "3")
    assert (code, errors) == (0, "")
    lines = [[cell.strip() for cell in line.split("│")] for line in output.splitlines()]
    rows = {cells[1]: cells[2] for cells in lines if len(cells) == 4}
    assert rows["episodes"] == "3"
    assert rows["mean length"] == "20.0 steps"  # the time limit
    assert rows["invalid actions"] == "0.00% of the steps"


def test_eval_gives_the_result_of_the_run(rlmask, trained):
    code, output, errors = rlmask("eval", trained, "--episodes", "2", "--json")
    assert (code, errors) == (0, "")
    assert json.loads(output) == json.loads((trained / "result.json").read_text())


@pytest.mark.parametrize("episodes", [1, 2])
def test_eval_prints_json(rlmask, trained, episodes):
    code, output, errors = rlmask("eval", trained, "--json", "--episodes", episodes)
    assert (code, errors) == (0, "")
    figures = json.loads(output, parse_constant=pytest.fail)  # called for NaN
    assert list(figures) == FIGURES
    assert figures["episodes"] == episodes
    assert figures["invalid_actions"] == 0
    if episodes == 1:
        assert figures["standard_error"] is None
    else:
        assert figures["standard_error"] >= 0


def test_eval_of_one_episode_prints_no_nan(rlmask, trained):
    code, output, _ = rlmask("eval", trained, "--episodes", "1")
    assert code == 0
    assert "nan" not in output


@pytest.mark.parametrize("how", [[], ["--stochastic"]])
def test_eval_takes_no_invalid_action(rlmask, trained, how):
    _, output, _ = rlmask("eval", trained, "--json", "--episodes", "20", *how)
    assert json.loads(output)["invalid_actions"] == 0


def test_eval_without_mask_counts_the_invalid_actions(rlmask, trained):
    code, output, errors = rlmask("eval", trained, "--json", "--without-mask", "--episodes", "5")
    assert (code, errors) == (0, "")
    assert 0 < json.loads(output)["invalid_actions"] <= 1


def test_eval_depends_on_its_seed_alone(rlmask):
    config = write_config(env="CartPole-v1", env_kwargs="{}")
    assert rlmask("train", config, "--run-dir", "run")[0] == 0
    results = [
        rlmask("eval", "run", "--json", "--stochastic", "--episodes", "5", "--seed", seed)[1]
        for seed in (7, 7, 8)
    ]
    assert results[0] == results[1]
    assert results[0] != results[2]


def test_eval_records_a_gif(rlmask, trained):
    video = "video.gif"
    code, output, errors = rlmask("eval", trained, "--episodes", "1", "--video", video)
    assert (code, errors) == (0, "")
    assert output.endswith("video  video.gif\n")
    with Image.open(video) as image:
        assert image.format == "GIF"
        milliseconds = 0
        for frame in range(image.n_frames):
            image.seek(frame)
            milliseconds += image.info["duration"]
    # the first state and those after 20 steps, at Taxi's 4 frames per second
    assert milliseconds == 21 * 250


def test_eval_records_an_mp4(rlmask, trained):
    pytest.importorskip("imageio_ffmpeg")
    code, _, errors = rlmask("eval", trained, "--episodes", "1", "--video", "video.mp4")
    assert (code, errors) == (0, "")
    assert b"ftyp" in Path("video.mp4").read_bytes()[:16]


# what is refused


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tarin"], ["no command `tarin`", "did you mean `train`?"]),
        (["zzz"], ["no command `zzz`"]),
        (["train"], ["wants a config", "--resume"]),
        (["train", "taxi"], ["wants a config"]),
        (["train", "missing.yaml"], ["missing.yaml", "No such file"]),
        (
            ["train", "config.yaml", "--learning-rat", "1"],
            ["rlmask: Unrecognized options: --learning-rat", "--learning-rate"],
        ),
        (["train", "config.yaml", "--no-such-flag"], ["--no-such-flag"]),
        (["train", "config.yaml", "--learning-rate", "fast"], ["--learning-rate", "'fast'"]),
        (["train", "config.yaml", "--learning-rate"], ["--learning-rate"]),
        (["train", "config.yaml", "--learning-rate", "-1"], ["learning_rate is -1.0"]),
        (["train", "config.yaml", "--num-envs", "1.5"], ["--num-envs", "1.5"]),
        (["train", "config.yaml", "--num-envs", "0"], ["num_envs is 0"]),
        (["train", "config.yaml", "--num-minibatches", "7"], ["num_minibatches = 7"]),
        (["train", "config.yaml", "--gamma", "2"], ["gamma is 2.0"]),
        (["train", "config.yaml", "--seed", "-1"], ["seed is -1"]),
        (["train", "config.yaml", "--eval-episodes", "0"], ["eval_episodes is 0"]),
        (
            ["train", "config.yaml", "--activation", "rely"],
            ["rlmask: invalid choice 'rely'", "tanh", "relu"],
        ),
        (["train", "config.yaml", "--env-kwargs", "3"], ["--env-kwargs", "mapping"]),
        (["train", "config.yaml", "--env-kwargs", "{a: "], ["--env-kwargs"]),
        (["train", "config.yaml", "--env-kwargs", "!!python/name:os.system"], ["--env-kwargs"]),
        (["train", "config.yaml", "--env-kwargs", "{no_such: 1}"], ["Taxi-v4", "no_such"]),
        (["train", "config.yaml", "--games", "[{env_id: Taxi-v4}]"], ["either env or games"]),
        (["train", "config.yaml", "--games", "[{env: Taxi-v4}]"], ["unknown key `env`"]),
        (["train", "config.yaml", "--env", "Taksi-v4"], ["Taksi-v4", "rlmask envs"]),
        (["train", "config.yaml", "--env", "Taxi-v99"], ["Taxi-v99"]),
        (["train", "config.yaml", "--env", "no_such_module:Game-v0"], ["no_such_module"]),
        (["train", "config.yaml", "--env", "Pendulum-v1", "--env-kwargs", "{}"], ["Discrete"]),
        (["train", "config.yaml", "--env", "CartPole-v1", "--mask-source", "info"], ["`none`"]),
        (["train", "config.yaml", "--mask-source", "method"], ["no mask in `method`", "`info`"]),
        (["train", "config.yaml", "--vectorization", "native"], ["Taxi-v4", "`sync`"]),
        (["train", "config.yaml", "--run-dir", "/proc/no/such"], ["/proc/no/such"]),
        (["train", "config.yaml", "--run-dir", "config.yaml/run"], ["config.yaml/run"]),
        (["train", "--resume"], ["--resume"]),
        (["train", "--resume", "missing"], ["missing is not a run"]),
        (["train", "--resume", "missing", "--seed", "3"], ["--seed"]),
        (["eval"], ["run"]),
        (["eval", "missing"], ["missing is not a run"]),
        (["eval", "."], ["is not a run"]),
        (["envs", "--extra"], ["extra"]),
        (["check-env"], ["env"]),
        (["check-env", "Taxi-v4", "--steps", "many"], ["--steps", "many"]),
        (["check-env", "Taxi-v4", "--steps", "0"], ["steps is 0"]),
        (["check-env", "Taxi-v4", "--seed", "-1"], ["seed is -1"]),
        (["check-env", "Taxi-v4", "--mask-source", "inf"], ["'inf'", "info"]),
    ],
    ids=lambda value: " ".join(value[:4]) if isinstance(value, list) else None,
)
def test_a_bad_argument_is_one_line(refusal, arguments, words):
    if arguments == ["eval", "."]:
        Path("config.yaml").unlink()
    line = refusal(*arguments)
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning_rat": "1"}, ["config.yaml", "`learning_rat`", "`learning_rate`"]),
        ({"checkpoint_second": "1"}, ["`checkpoint_second`", "`checkpoint_seconds`"]),
        ({"learning_rate": "fast"}, ["config.yaml: learning_rate is 'fast'", "a number"]),
        ({"num_envs": "2.0"}, ["num_envs is 2.0", "a whole number"]),
        ({"num_envs": "true"}, ["num_envs is True", "a whole number"]),
        ({"anneal_learning_rate": "1"}, ["anneal_learning_rate is 1", "true or false"]),
        ({"activation": "rely"}, ["activation is 'rely'", "tanh, relu"]),
        ({"hidden_sizes": "64"}, ["hidden_sizes is 64", "a list"]),
        ({"gamma": "2"}, ["config.yaml: gamma is 2.0"]),
        ({"algo": "pp0"}, ["algo is 'pp0'", "ppo"]),
        ({"algo": "[ppo]"}, ["algo is ['ppo']", "ppo"]),
        ({"algo": None}, ["algo is None", "ppo"]),
        ({"env": None}, ["either env or games"]),
        ({"env": "2024-13-45"}, ["config.yaml is not YAML"]),
        ({"env": "!!python/object/apply:os.getcwd []"}, ["config.yaml is not YAML"]),
        ({"env": "[a"}, ["config.yaml is not YAML"]),
        ({"games": "[{1: 2}]"}, ["config.yaml: games[0]"]),
        ({"env_kwargs": "{1: 2}"}, ["env_kwargs is {1: 2}"]),
        ({"env_kwargs": "{max_episode_steps: many}"}, ["Taxi-v4"]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_a_bad_config_is_one_line(refusal, changes, words):
    line = refusal("train", write_config(**changes))
    for word in words:
        assert word in line


def test_a_gpu_that_is_not_there_is_one_line(refusal, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "device is cuda" in refusal("train", "config.yaml", "--device", "cuda")


def test_an_existing_run_is_not_overwritten(refusal, trained):
    shutil.copytree(trained, "run")
    before = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")}
    line = refusal("train", "config.yaml", "--run-dir", "run")
    assert "run exists" in line
    assert "rlmask train --resume run" in line
    assert {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")} == before


@pytest.mark.parametrize("command", [["eval"], ["train", "--resume"]])
def test_a_corrupt_checkpoint_is_one_line(refusal, trained, command):
    shutil.copytree(trained, "run")
    Path("run/.lock").touch()
    flip(Path("run/checkpoints/000001/network.safetensors"))
    line = refusal(*command, "run")
    assert "no checkpoint of run is good" in line


def test_eval_of_a_run_that_has_not_begun_is_one_line(refusal, trained):
    shutil.copytree(trained, "run")
    shutil.rmtree("run/checkpoints")
    assert "has no checkpoint yet" in refusal("eval", "run")


def test_eval_of_a_run_whose_config_was_edited_is_one_line(refusal, trained):
    shutil.copytree(trained, "run")
    config = Path("run/config.yaml")
    config.write_text(config.read_text().replace("hidden_sizes:\n- 8\n", "hidden_sizes: [9]\n"))
    assert "hidden_sizes is [9]" in refusal("eval", "run")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--episodes", "0"], ["--episodes is 0"]),
        (["--episodes", "-3"], ["--episodes is -3"]),
        (["--seed", "-1"], ["seed is -1"]),
        (["--video", "film.avi"], ["film.avi", ".gif", ".mp4"]),
        (["--video", "film"], ["film", ".gif", ".mp4"]),
        (["--video", "no/such/film.gif"], ["no/such/film.gif"]),
        (["--episode", "3", "4"], ["4"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_bad_argument_of_eval_is_one_line(refusal, trained, arguments, words):
    line = refusal("eval", trained, "--episodes", "1", *arguments)
    for word in words:
        assert word in line


@pytest.mark.parametrize("fault", ["two", "missing", "empty", "length 5"])
def test_a_mask_error_is_one_line(rlmask, fault):
    config = write_config(env=env_id("Malformed"), env_kwargs=f"{{fault: {fault}}}")
    code, _, errors = rlmask("train", config, "--run-dir", "run")
    assert code == 2
    assert_one_line(errors)
    assert f"{env_id('Malformed')}, env 0, episode 1, step 2: " in errors


def test_frames_that_are_not_stacked_are_one_line(rlmask):
    Path("grid.yaml").write_text(f"algo: dqn\nenv: {env_id('Grid')}\nframe_stack: 2\n")
    code, _, errors = rlmask("train", "grid.yaml", "--run-dir", "run")
    assert code == 2
    assert_one_line(errors)
    assert "set frame_stack to 1" in errors


def test_scores_that_are_not_finite_are_one_line(rlmask):
    flags = ["--learning-rate", "1e38", "--total-steps", "320", "--run-dir", "run"]
    code, _, errors = rlmask("train", "config.yaml", *flags)
    assert code == 2
    assert_one_line(errors)
    assert "not finite" in errors
    assert "learning_rate" in errors


def test_an_env_that_needs_an_extra_is_one_line(refusal):
    line = refusal("train", write_config(env=env_id("NeedsExtra"), env_kwargs="{}"))
    assert "pip install no-such-game" in line


@pytest.mark.parametrize("name", ["imageio", "imageio_ffmpeg"])
def test_a_missing_extra_for_mp4_is_one_line(refusal, trained, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    line = refusal("eval", trained, "--episodes", "1", "--video", "film.mp4")
    assert "pip install 'rlmask[video]'" in line


def test_a_video_that_cannot_be_written_is_refused_before_anything_is_played(
    refusal, trained, monkeypatch
):
    monkeypatch.setattr(run, "evaluate_games", None)
    assert "a video ends in .gif or .mp4" in refusal("eval", trained, "--video", "film.avi")


@pytest.mark.parametrize("flags", [("--env", "Taxi-v4"), ("--env=Taxi-v4",)])
def test_a_config_may_leave_the_env_to_the_command_line(rlmask, refusal, flags):
    Path("open.yaml").write_text(CONFIG.replace("env: Taxi-v4\n", ""))
    assert "set either env or games" in refusal("train", "open.yaml", "--run-dir", "run")
    code, _, errors = rlmask("train", "open.yaml", *flags, "--run-dir", "run")
    assert (code, errors) == (0, "")


def test_a_config_may_leave_its_games_to_the_command_line(rlmask):
    open_config = CONFIG.replace("env: Taxi-v4\nenv_kwargs: {max_episode_steps: 20}\n", "")
    Path("open.yaml").write_text(open_config)
    games = f"[{{env_id: {env_id('Counter')}, action_ids: [2, 0, 1]}}]"
    code, _, errors = rlmask("train", "open.yaml", "--games", games, "--run-dir", "run")
    assert (code, errors) == (0, "")
    code, output, _ = rlmask("train", "open.yaml", "--help")
    assert code == 0 and "--learning-rate" in output


def test_runs_of_one_second_get_directories_of_their_own(monkeypatch):
    monkeypatch.setattr(commands.time, "strftime", lambda form: "20260101-120000")
    config = runs.parse_config({"algo": "ppo", "env": "Taxi-v4"}, "test")
    paths = [commands.create_default("taxi-0", config)[0] for _ in range(3)]
    first = "runs/taxi-0-20260101-120000"
    assert list(map(str, paths)) == [first, f"{first}-2", f"{first}-3"]


def test_training_goes_on_when_the_reader_of_its_lines_has_gone():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "rlmask.cli", "train", "config.yaml", "--run-dir", "run"]
    with os.fdopen(writer, "w") as pipe:
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(Path("run/result.json").read_text())["episodes"] == 2


@pytest.mark.filterwarnings("ignore::rlmask.run.CutWarning")
def test_an_env_that_refuses_invalid_actions_cannot_be_played_without_its_mask(rlmask, refusal):
    strict = write_config(env=env_id("Corridor"), env_kwargs="{strict: true}")
    code, *_ = rlmask("train", strict, "--eval-max-episode-steps", "50", "--run-dir", "run")
    assert code == 0
    line = refusal("eval", "run", "--without-mask", "--stochastic")
    assert "the env refuses an invalid action" in line and "without its mask" in line


@pytest.mark.parametrize("seed", ["-1", str(2**63)])
def test_a_seed_out_of_range_is_one_line(refusal, trained, seed):
    assert "seed is" in refusal("train", "config.yaml", "--seed", seed)
    assert "seed is" in refusal("eval", trained, "--seed", seed)
    assert "seed is" in refusal("check-env", "Taxi-v4", "--seed", seed)


def test_a_missing_extra_for_the_pictures_is_one_line(refusal, trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "pygame", None)
    line = refusal("eval", trained, "--episodes", "1", "--video", "film.gif")
    assert "pygame" in line
    assert "pip install" in line


@pytest.mark.filterwarnings("default")  # as for a user
def test_an_env_without_pictures_is_one_line(rlmask, refusal):
    assert (
        rlmask("train", write_config(env=env_id("Counter"), env_kwargs="{}"), "--run-dir", "r")[0]
        == 0
    )
    line = refusal("eval", "r", "--episodes", "1", "--video", "film.gif")
    assert env_id("Counter") in line
    assert "rgb_array" in line


def test_a_disk_that_cannot_be_written_is_one_line(refusal, monkeypatch):
    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    assert "No space left on device" in refusal("train", "config.yaml", "--run-dir", "run")


def test_an_interrupted_run_has_the_exit_code_of_its_signal(rlmask, monkeypatch):
    def interrupt(run_dir, display):
        raise run.Interrupted(15)

    monkeypatch.setattr(run, "train", interrupt)
    assert rlmask("train", "config.yaml")[0] == 128 + 15


def test_a_bug_keeps_its_traceback(rlmask, monkeypatch):
    def bug(arguments):
        raise ZeroDivisionError

    monkeypatch.setitem(cli.COMMANDS, "envs", bug)
    with pytest.raises(ZeroDivisionError):
        rlmask("envs")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (BrokenPipeError(32, "Broken pipe"), 2, "BrokenPipeError: Broken pipe"),  # an env's pipe
        (OSError("cannot identify image file"), 2, "OSError: cannot identify image file"),
        (FileNotFoundError(2, "No such file", "x.rom"), 2, "x.rom: No such file"),
        (SystemExit("no ROM found"), 2, "no ROM found"),
        (SystemExit(1), 1, ""),
    ],
)
def test_what_an_env_raises_is_no_success(rlmask, monkeypatch, error, code, words):
    def broken(arguments):
        raise error

    monkeypatch.setitem(cli.COMMANDS, "envs", broken)
    assert rlmask("envs") == (code, "", f"rlmask: {words}\n" if words else "")


def test_a_closed_pipe_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "rlmask.cli", "--help"]
    with os.fdopen(writer, "w") as pipe:
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


# check-env and envs


def test_check_env_of_a_good_env(rlmask):
    code, output, errors = rlmask("check-env", "Taxi-v4", "--steps", "300")
    assert (code, errors) == (0, "")
    assert "   ok observations: 500 discrete; actions: 6\n" in output
    assert "   ok mask found in `info`\n" in output
    assert "   ok 300 random valid steps" in output
    assert "resume is exact" in output
    assert not any(line.startswith("error") for line in output.splitlines())


def test_check_env_of_an_env_without_mask(rlmask):
    code, output, _ = rlmask("check-env", "CartPole-v1", "--steps", "50")
    assert code == 0
    assert " note no mask: every action counts as valid\n" in output


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ("{fault: two}", "step 2: entry 1 of the mask is 2, neither 0 nor 1"),
        ("{fault: length 5, where: obs}", "step 2: the mask has shape (5,), not (4,)"),
        (
            "{fault: empty, where: method}",
            "step 2: no action is valid, but the episode has not terminated",
        ),
        ("{fault: missing}", "step 2: `info` has no action mask"),
        ("{fault: error}", "the env raised RuntimeError on a valid action: the game is broken"),
    ],
)
def test_check_env_of_a_malformed_env(rlmask, kwargs, words):
    env = env_id("Malformed")
    code, output, errors = rlmask("check-env", env, "--env-kwargs", kwargs, "--steps", "50")
    assert (code, errors) == (2, "")
    (line,) = [line for line in output.splitlines() if line.startswith("error")]
    assert env in line
    assert words in line
    assert "Traceback" not in output


def test_check_env_of_an_env_that_is_not_there(rlmask):
    code, output, errors = rlmask("check-env", "Taksi-v4")
    assert code == 2
    assert "Taksi-v4" in output + errors
    assert (output + errors).count("\n") == 1


def test_envs_lists_those_with_masks_first(rlmask, without_atari):
    code, output, errors = rlmask("envs")
    assert (code, errors) == (0, "")
    rows = [line.split() for line in output.splitlines()]
    assert ["Taxi-v4", "500", "discrete", "6", "info"] in rows
    assert ["CartPole-v1", "vector", "(4,)", "2", "all", "valid"] in rows
    masked = [row[-1] != "valid" for row in rows[1:]]
    assert masked == sorted(masked, reverse=True)
    assert not any(row[0].startswith("Pendulum") for row in rows)  # continuous actions
    snake = "rlmask_envs:rlmask/Snake-v0"  # as it is to be written in a config
    assert [snake, "image", "(10,", "10,", "16)", "6", "info"] in rows


def test_envs_imports_other_packages_first(rlmask, without_atari):
    code, output, _ = rlmask("envs", "rlmask_envs", "envs_for_tests")
    assert code == 0
    assert "envs_for_tests:rlmask-tests/Grid-v0" in output
    assert "rlmask_envs:rlmask/Snake-v0" in output
    code, _, errors = rlmask("envs", "no_such_package")
    assert code == 2
    assert "cannot import no_such_package" in errors


def test_modules_of_the_working_directory_can_be_named(rlmask, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "of_mine.py").write_text(
        "import gymnasium\n\ngymnasium.register('mine/Pole-v0', "
        "entry_point='gymnasium.envs.classic_control.cartpole:CartPoleEnv')\n"
    )
    assert rlmask("check-env", "of_mine:mine/Pole-v0", "--steps", "20")[0] == 0
    assert sys.path[-1] == str(tmp_path)  # behind all that is installed


@pytest.mark.parametrize("env", ["CartPole", "rlmask_envs:rlmask/Snake"])
def test_check_env_takes_the_newest_version(rlmask, env):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Gymnasium says which it took
        code, output, _ = rlmask("check-env", env, "--steps", "20")
    assert code == 0, output


def test_check_env_plays_the_vector_env_too(rlmask):
    code, output, _ = rlmask("check-env", "rlmask_envs:rlmask/Snake-v0", "--steps", "200")
    assert code == 0
    assert "its own vector env comes back to a saved state" in output
    code, output, _ = rlmask("check-env", env_id("Both"), "--steps", "200")
    assert code == 0
    assert "does not come back to a saved state" in output


def test_eval_plays_other_sizes(rlmask, tmp_path):
    routes = {
        "algo": "ppo",
        "env": "rlmask_envs:rlmask/CVRP-v0",
        "env_kwargs": {"num_customers": 3, "capacity": 9},
        "encoder": "set",
        "num_heads": 2,
        "num_envs": 2,
        "num_steps": 4,
        "num_minibatches": 2,
        "total_steps": 8,
        "hidden_sizes": [8],
        "eval_episodes": 2,
        "device": "cpu",
    }
    Path("routes.yaml").write_text(json.dumps(routes))
    assert rlmask("train", "routes.yaml", "--run-dir", "routes")[0] == 0
    code, out, _ = rlmask("eval", "routes", "--episodes", "4", "--json")
    assert code == 0 and 3 < json.loads(out)["mean_length"] <= 6
    more = "{num_customers: 7}"
    code, out, _ = rlmask("eval", "routes", "--episodes", "4", "--json", "--env-kwargs", more)
    assert code == 0 and 7 < json.loads(out)["mean_length"] <= 14

    # rows of 2 numbers and 1 common one, or none at all, where the policy knows 9 and 3
    for name in ("Pick", "Grid"):
        with pytest.raises(
            runs.RunError, match="of another width: play problems of the game it was"
        ):
            run.load("routes", games=(Game(env_id=env_id(name)),))

    Path("routes.yaml").write_text(json.dumps({**routes, "encoder": "layers"}))
    assert rlmask("train", "routes.yaml", "--run-dir", "layers")[0] == 0
    code, _, complaint = rlmask("eval", "layers", "--env-kwargs", more)
    assert code == 2 and "is for 4 actions and observations of (39,), not for 8" in complaint
    assert "encoder: set" in complaint and complaint.count("\n") == 1
