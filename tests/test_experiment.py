import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import playing
import pytest
import yaml

from rlmask.cli import main
from rlmask.config import ConfigError
from rlmask.experiment import Experiment, read_experiment
from rlmask.jobs import check_settings
from rlmask.report import read_results
from rlmask.vector import short_names

ROOT = Path(__file__).parents[1]
EXPERIMENTS = [
    path
    for path in sorted((ROOT / "configs/distill").rglob("*.yaml"))
    if "algo" not in yaml.safe_load(path.read_text())
]
GAMES = [
    {"env_id": playing.env_id("Snake"), "action_ids": [0, 1, 2, 3, 4, 5]},
    {
        "env_id": playing.env_id("Tetris"),
        "env_kwargs": {"width": 6},
        "action_ids": [0, 1, 2, 3, 4, 5],
    },
]
EXPERT = {
    "algo": "ppo",
    "env": "CartPole-v1",
    "vectorization": "native",
    "num_envs": 16,
    "num_steps": 16,
    "num_minibatches": 2,
    "num_epochs": 1,
    "total_steps": 1024,
    "eval_episodes": 2,
    "hidden_sizes": [16],
    "shared_torso": True,
}
STUDENT = {
    "games": GAMES,
    "vectorization": "native",
    "num_envs": 16,
    "num_steps": 8,
    "num_gradient_steps": 2,
    "batch_size": 32,
    "learning_starts": 16,
    "total_steps": 512,
    "hidden_sizes": [16],
    "eval_episodes": 2,
}


def write(path, settings):
    path.write_text(yaml.safe_dump(settings))
    return path


def experiment(tmp_path, **changes):
    expert = write(tmp_path / "expert.yaml", EXPERT)
    settings = {
        "experts": [str(expert)],
        "student": STUDENT,
        "seeds": [0],
        "eval_episodes": 2,
        **changes,
    }
    return write(tmp_path / "small.yaml", settings)


@pytest.mark.slow
def test_the_whole_of_it_from_one_command(tmp_path, monkeypatch, capsys):
    """Experts, student, variant, baseline, report; then again with one thing more."""
    monkeypatch.chdir(tmp_path)
    path = experiment(tmp_path)
    assert main(["distill", str(path)]) == 0
    said = capsys.readouterr().out
    assert "It took no invalid action." in said
    directory = tmp_path / "runs/small"
    results = read_results(directory / "report.json")
    assert results.games == ("Snake", "Tetris")
    assert [p.kind for p in results.players] == ["teacher", "random", "student"]
    assert all(p.played["Tetris"][0].invalid_actions == 0 for p in results.players)
    assert results.temperatures == {"Snake": 1.0, "Tetris": 1.0}
    assert {curve.player for curve in results.curves} == {"teacher", "student"}
    config = yaml.safe_load((directory / "experts/Tetris/config.yaml").read_text())
    assert (config["env"], config["env_kwargs"]) == (GAMES[1]["env_id"], {"width": 6})

    before = {p: p.stat().st_mtime_ns for p in directory.rglob("config.yaml")}
    multi = write(tmp_path / "multi.yaml", {**EXPERT, "games": GAMES, "env": ""})
    more = {
        "include": str(path),
        "variants": {"heads": {"game_heads": True}},
        "baselines": {"multi-task": {"config": str(multi), "total_steps": 512}},
    }
    again = write(tmp_path / "more.yaml", more)
    assert main(["distill", str(again), "--directory", str(directory)]) == 0
    results = read_results(directory / "report.json")
    assert [p.name for p in results.players][2:] == ["student", "heads", "multi-task"]
    assert results.players[3].note == "game_heads True"
    after = {p: p.stat().st_mtime_ns for p in directory.rglob("config.yaml")}
    assert {p: after[p] for p in before} == before  # nothing of it was begun anew
    assert len(after) == len(before) + 2
    stages = json.loads((directory / "stages.json").read_text())
    assert stages["experts"] > 0

    changed = write(tmp_path / "small.yaml", {**yaml.safe_load(path.read_text()), "seeds": [0]})
    student = {**STUDENT, "learning_rate": 0.5}
    write(changed, {**yaml.safe_load(path.read_text()), "student": student})
    assert main(["distill", str(changed)]) == 2
    assert "learning_rate is 0.5" in capsys.readouterr().err


def test_a_failing_run_is_named_with_its_last_words(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    broken = {"expert_settings": {"learning_rate": 1e30, "total_steps": 2048}}
    path = experiment(tmp_path, **broken)
    assert main(["distill", str(path), "--num-workers", "1"]) == 2
    error = capsys.readouterr().err
    assert "Snake failed: rlmask: the" in error
    assert "Snake.log" in error


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"experts": ["expert.yaml", "runs/none"]}, "runs/none is neither a run directory nor"),
        ({"variants": {"hot": {"temprature": 2.0}}}, "hot, seed 0: unknown key `temprature`"),
        ({"baselines": {"multi": {"config": "expert.yaml", "env": "No-v0"}}}, "`No` doesn't exist"),
        ({"student": {"games": [{**GAMES[0], "action_ids": [0]}, GAMES[1]]}}, "action_ids"),
    ],
    ids=["expert", "variant", "baseline", "games"],
)
def test_what_would_go_wrong_later_is_found_before_anything_is_trained(
    tmp_path, monkeypatch, capsys, changes, said
):
    monkeypatch.chdir(tmp_path)
    path = experiment(tmp_path)
    path = write(tmp_path / "given.yaml", {"include": str(path), **changes})
    assert main(["distill", str(path)]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_signal_stops_all_runs_and_the_next_call_goes_on(tmp_path):
    path = experiment(tmp_path, expert_settings={"total_steps": 10_000_000})
    command = [sys.executable, "-m", "rlmask.cli", "distill", str(path)]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    metrics = [
        tmp_path / f"runs/small/experts/{game}/metrics.jsonl" for game in ("Snake", "Tetris")
    ]
    deadline = time.monotonic() + 120
    while not all(m.is_file() and m.stat().st_size for m in metrics):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 128 + signal.SIGINT
    for of_game in metrics:
        assert list((of_game.parent / "checkpoints").glob("[0-9]*"))
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert "runs/small/experts" not in listed.stdout


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"experts": []}, "needs experts"),
        ({"experts": ["a.yaml"] * 3}, "3 for 2 games"),
        ({"seeds": []}, "at least one of seeds"),
        ({"student": {**STUDENT, "seed": 3}}, "student's seed is set by the experiment"),
        ({"student": {**STUDENT, "lerning_rate": 3}}, "did you mean `learning_rate`"),
        ({"baselines": {"a": {}}}, "baseline a needs `config`"),
        ({"sedes": [1]}, "did you mean `seeds`"),
        ({"include": "small.yaml"}, "includes itself"),
    ],
)
def test_what_does_not_hold_is_named(tmp_path, monkeypatch, changes, said):
    monkeypatch.chdir(tmp_path)
    experiment(tmp_path, **changes)
    with pytest.raises(ConfigError, match=said):
        Experiment(read_experiment(type(tmp_path)("small.yaml")), tmp_path / "out")


def test_an_expert_scores_single_states(tmp_path):
    path = experiment(tmp_path)
    write(tmp_path / "expert.yaml", {"algo": "recurrent_ppo", "num_minibatches": 1, "num_envs": 4})
    with pytest.raises(ConfigError, match="a policy that remembers scores no single state"):
        Experiment(read_experiment(path), tmp_path / "out")


def test_an_expert_has_no_learned_mask(tmp_path):
    path = experiment(tmp_path)
    write(tmp_path / "expert.yaml", {"algo": "dqn", "learned_mask": True})
    with pytest.raises(ConfigError, match="a run with a learned mask teaches nobody"):
        Experiment(read_experiment(path), tmp_path / "out")


def test_an_expert_has_one_game(tmp_path):
    path = experiment(tmp_path)
    write(tmp_path / "expert.yaml", {**EXPERT, "games": GAMES})
    with pytest.raises(ConfigError, match="an expert has one"):
        Experiment(read_experiment(path), tmp_path / "out")


def test_mappings_of_an_included_experiment_are_put_together(tmp_path):
    path = experiment(tmp_path, variants={"a": {"epsilon": 0.5}})
    more = {
        "include": str(path),
        "variants": {"b": {"epsilon": 0.2}},
        "student": {"epsilon": 0.3},
        "seeds": [4],
    }
    config = read_experiment(write(tmp_path / "more.yaml", more))
    assert config.variants == {"a": {"epsilon": 0.5}, "b": {"epsilon": 0.2}}
    assert config.student == {**STUDENT, "epsilon": 0.3}
    assert config.seeds == (4,)


def test_short_names_are_used_where_they_are_enough():
    assert short_names(["m:p/Snake-v0", "m:p/Tetris-v1"]) == ["Snake", "Tetris"]
    assert short_names(["m:p/Atari-v0-pong", "m:p/Atari-v0-boxing"]) == [
        "Atari-pong",
        "Atari-boxing",
    ]
    assert short_names(["p/Snake-v0", "q/Snake-v0"]) == ["p-Snake-v0", "q-Snake-v0"]


@pytest.mark.parametrize(
    "path", EXPERIMENTS, ids=lambda path: str(path.relative_to(ROOT / "configs/distill"))
)
def test_the_experiments_of_the_repository_hold(path, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    experiment = Experiment(read_experiment(path), tmp_path)
    assert len(experiment.experts) == len(experiment.games) > 3
    jobs = {**experiment.students(), **experiment.baselines()}
    for of_name in jobs.values():
        for job in of_name:
            check_settings(job)
    assert len(jobs["student"]) == len(experiment.config.seeds)


@pytest.mark.slow
def test_two_atari_games_in_small(tmp_path, monkeypatch, capsys):
    """The experiment of the eight games as it is, but for its size."""
    pytest.importorskip("ale_py")
    monkeypatch.chdir(ROOT)
    whole = yaml.safe_load((ROOT / "configs/distill/atari.yaml").read_text())
    tiny = {"num_envs": 4, "num_steps": 4, "total_steps": 16, "hidden_sizes": [8]}
    ends = {"eval_episodes": 1, "eval_max_episode_steps": 8}
    small = {
        "include": "configs/distill/atari.yaml",
        "expert_settings": {**tiny, **ends, "num_minibatches": 1},
        "student": {
            **tiny,
            **ends,
            "games": whole["student"]["games"][1:3],
            "num_gradient_steps": 1,
            "batch_size": 8,
            "learning_starts": 2,
        },
        "seeds": [0],
        "eval_episodes": 1,
    }
    path = write(tmp_path / "atari.yaml", small)
    assert main(["distill", str(path), "--directory", str(tmp_path / "out")]) == 0
    results = read_results(tmp_path / "out/report.json")
    assert results.games == ("Atari-boxing", "Atari-breakout")
    assert all(s.invalid_actions == 0 for p in results.players for s in p.played["Atari-boxing"])
