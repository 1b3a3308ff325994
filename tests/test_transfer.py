import itertools
from pathlib import Path

import envs_for_tests  # noqa: F401 (registers its envs)
import pytest
import torch
import yaml

from rlmask import dqn, ppo, run, runs
from rlmask.actor_mimic import ActorMimicNetwork
from rlmask.cli import main
from rlmask.networks import ActorCritic, QNetwork
from rlmask.transfer import TransferError, initial_weights
from rlmask.transfer_study import Curves, table
from rlmask.types import ActionSpec, ObsSpec

ACTION = ActionSpec(nvec=(4,))


def image(channels, size=6):
    return ObsSpec(kind="image", shape=(size, size, channels), dtype="uint8")


def student(obs, num_games=2, **changes):
    settings = {
        "hidden_sizes": (8,),
        "activation": "relu",
        "game_stems": False,
        "game_heads": False,
        "value_head": False,
        "normalize_obs": False,
        "generator": torch.Generator().manual_seed(1),
    }
    return ActorMimicNetwork(obs, ACTION, num_games, **{**settings, **changes})


def critic(obs, action=ACTION, hidden_sizes=(8,)):
    return ActorCritic(
        obs,
        action,
        hidden_sizes=hidden_sizes,
        activation="relu",
        shared_torso=True,
        normalize_obs=False,
        generator=torch.Generator().manual_seed(2),
    )


def q_network(obs, **changes):
    settings = {
        "hidden_sizes": (8,),
        "activation": "relu",
        "dueling": False,
        "layer_norm": False,
        "num_outputs": 1,
        "support": None,
        "generator": torch.Generator().manual_seed(3),
    }
    return QNetwork(obs, ACTION, **{**settings, **changes})


@pytest.mark.parametrize("make", [critic, q_network])
def test_a_new_network_says_what_the_student_says(make):
    """Of a game with fewer planes, it is as if the others were empty."""
    teacher, target = student(image(3)), make(image(2))
    first = initial_weights(teacher.state_dict(), target.state_dict(), parts="trunk_and_head")
    target.load_state_dict(first)
    obs = torch.randint(256, (5, 6, 6, 2), dtype=torch.uint8)
    mask = torch.ones(5, 4, dtype=torch.bool)
    padded = torch.cat([obs, torch.zeros(5, 6, 6, 1, dtype=torch.uint8)], -1)
    expected, features = teacher.scores(torch.cat([padded, padded])[:10], mask.repeat(2, 1))
    scores, own = target.scores(obs, mask)
    torch.testing.assert_close(own, features[:5])
    torch.testing.assert_close(scores, expected[:5])


def test_more_planes_stay_random_and_the_trunk_comes_alone():
    teacher, target = student(image(2)), critic(image(3))
    before = {name: weight.clone() for name, weight in target.state_dict().items()}
    first = initial_weights(teacher.state_dict(), target.state_dict(), parts="trunk")
    own, new = before["torso.convs.0.layers.0.weight"], first["torso.convs.0.layers.0.weight"]
    assert torch.equal(new[:, :2], teacher.torso.convs[0].layers[0].weight)
    assert torch.equal(new[:, 2:], own[:, 2:])
    assert torch.equal(first["actor_head.weight"], before["actor_head.weight"])
    assert torch.equal(first["critic_head.weight"], before["critic_head.weight"])
    assert all(torch.equal(target.state_dict()[name], before[name]) for name in before)


def test_a_student_with_stems_gives_all_but_the_first_layer():
    teacher, target = student(image(2), game_stems=True), critic(image(2))
    before = target.state_dict()["torso.convs.0.layers.0.weight"].clone()
    with pytest.raises(TransferError, match="no layer"):
        initial_weights(teacher.state_dict(), target.state_dict(), parts="trunk")
    first = initial_weights(
        teacher.state_dict(), target.state_dict(), parts="trunk", source_stems=True
    )
    assert torch.equal(first["torso.convs.0.layers.0.weight"], before)
    assert torch.equal(first["torso.layers.0.weight"], teacher.torso.layers[0].weight)


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        (student(image(2)), critic(image(2), hidden_sizes=(9,)), "hidden_sizes"),
        (student(image(2)), critic(image(2, size=7)), "same height and width"),
        (student(image(2)), critic(image(2), ActionSpec(nvec=(3,))), "num_actions and action_ids"),
        (student(image(2), game_heads=True), critic(image(2)), "trunk only"),
        (student(image(2)), q_network(image(2), num_outputs=5), "no dueling, no distribution"),
    ],
)
def test_what_does_not_fit_is_named(source, target, said):
    with pytest.raises(TransferError, match=said):
        initial_weights(source.state_dict(), target.state_dict(), parts="trunk_and_head")


@pytest.mark.parametrize("module", [ppo, dqn])
def test_a_run_begins_with_the_weights_it_is_given(module):
    config = {ppo: ppo.PPOConfig, dqn: dqn.DQNConfig}[module](
        env="rlmask-tests/Corridor-v0", num_envs=4, total_steps=256, learning_rate=1e-30
    )
    given = {}

    def initial(random):
        given.update({name: weight + 1 for name, weight in random.items()})
        return given

    captured = next(module.train(config, initial=initial)).capture()
    for key in ("network", "target") if module is dqn else ("network",):
        for name, weight in captured[key].items():
            torch.testing.assert_close(weight, given[name])


def write(path: Path, settings):
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def test_a_study_from_the_command_line(tmp_path, monkeypatch, capsys):
    """Twice: the second time nothing is trained."""
    monkeypatch.chdir(tmp_path)
    games = [
        {"env_id": "CartPole-v1", "action_ids": [0, 1]},
        {
            "env_id": "CartPole-v1",
            "action_ids": [1, 0],
            "env_kwargs": {"sutton_barto_reward": True},
        },
    ]
    small = {"algo": "ppo", "num_envs": 4, "num_steps": 8, "num_minibatches": 2, "total_steps": 64}
    small |= {"shared_torso": True, "eval_episodes": 2}
    source = write(tmp_path / "two.yaml", {**small, "games": games})
    assert main(["train", source, "--run-dir", "student"]) == 0
    new = write(tmp_path / "new.yaml", {**small, "env": "CartPole-v1", "total_steps": 960})
    command = ["transfer", "student", new, "--seeds", "0", "--directory", "out"]
    assert main(command) == 0
    said = capsys.readouterr().out
    for init in ("random", "trunk", "trunk_and_head"):
        assert f"| {init} |" in said
    assert (tmp_path / "out/transfer.svg").read_text().startswith("<svg")
    runs_there = sorted((tmp_path / "out/runs").glob("*/checkpoints/*"))
    assert main(command) == 0
    assert sorted((tmp_path / "out/runs").glob("*/checkpoints/*")) == runs_there
    config = runs.read_config(tmp_path / "out/runs/trunk-0")
    assert config.options.init_from == str(tmp_path / "student")
    assert run.load(tmp_path / "out/runs/trunk-0") is not None
    missing = ["train", new, "--init-from", "nowhere"]
    assert main(missing) == 2
    assert "nowhere is not a run" in capsys.readouterr().err
    wider = write(tmp_path / "wider.yaml", {**small, "env": "CartPole-v1", "hidden_sizes": [9]})
    assert main(["transfer", "student", wider, "--seeds", "0"]) == 2
    assert "give the new run the student's conv_filters and hidden" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_the_table_has_means_and_errors_over_seeds():
    rows = (tuple(float(i) for i in range(10)), tuple(float(i) + 2 for i in range(10)))
    text = table([Curves(init="random", means=rows)])
    # of 0 and 2: mean 1, standard deviation √2, standard error 1
    assert "| random | 1.00 ± 1.00 |" in text
    assert "| 5.50 ± 1.00 |" in text  # means 4.5 and 6.5 over the run
    assert len(list(itertools.chain(text.splitlines()[0].split("|")))) == 14
