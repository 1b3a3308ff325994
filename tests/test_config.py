import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rlmask import runs
from rlmask.config import ConfigError, build, check_literals, read_yaml, suggest, to_settings
from rlmask.distill import DistillConfig
from rlmask.dqn import DQNConfig
from rlmask.ppo import PPOConfig
from rlmask.pqn import PQNConfig
from rlmask.recurrent_ppo import RecurrentPPOConfig
from rlmask.validity import ValidityConfig
from rlmask.vector import Game

ALL = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))
CONFIGS = [path for path in ALL if "algo" in read_yaml(path)]  # the others are experiments


@dataclass(frozen=True, kw_only=True)
class Part:
    name: str
    places: tuple[int, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Settings:
    count: int = 1
    rate: float = 0.5
    flag: bool = False
    title: str = "none"
    limit: float | None = None
    kind: Literal["fast", "slow"] = "fast"
    sizes: tuple[int, ...] = ()
    parts: tuple[Part, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.count < 0:
            raise ValueError("count must not be negative")


def write(directory, text):
    path = directory / "settings.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("count", 3, 3),
        ("rate", 2, 2.0),  # an int is a float
        ("rate", 0.25, 0.25),
        ("rate", "1e-3", 0.001),  # what YAML 1.1 makes of 1e-3
        ("flag", True, True),
        ("title", "7", "7"),
        ("limit", None, None),
        ("limit", 1, 1.0),
        ("limit", "2e0", 2.0),
        ("kind", "slow", "slow"),
        ("sizes", [], ()),
        ("sizes", [64, 32], (64, 32)),
        ("sizes", (64, 32), (64, 32)),
        ("parts", [{"name": "a"}], (Part(name="a"),)),
        ("parts", [{"name": "a", "places": None}], (Part(name="a"),)),
        (
            "parts",
            [{"name": "a", "places": [2, 0], "options": {"x": [1]}}],
            (Part(name="a", places=(2, 0), options={"x": [1]}),),
        ),
        ("options", {"rainy": True, "sizes": [1, 2]}, {"rainy": True, "sizes": [1, 2]}),
    ],
)
def test_a_value_becomes_its_type(name, value, expected):
    found = getattr(build(Settings, {name: value}, "here"), name)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("count", True, "count is True; it must be a whole number"),
        ("count", 64.0, "count is 64.0; it must be a whole number"),
        ("count", "64", "count is '64'; it must be a whole number"),
        ("count", None, "count is None; it must be a whole number"),
        ("count", [1], "count is [1]; it must be a whole number"),
        ("rate", False, "rate is False; it must be a number"),
        ("rate", "fast", "rate is 'fast'; it must be a number"),
        ("rate", None, "rate is None; it must be a number"),
        ("rate", [0.1], "rate is [0.1]; it must be a number"),
        pytest.param("rate", 10**400, "it must be a number", id="too large for a float"),
        ("flag", 1, "flag is 1; it must be true or false"),
        ("flag", "yes", "flag is 'yes'; it must be true or false"),
        ("title", 7, "title is 7; it must be text"),
        ("limit", "none", "limit is 'none'; it must be a number"),
        ("limit", True, "limit is True; it must be a number"),
        ("kind", "quick", "kind is 'quick'; choose one of fast, slow"),
        ("kind", None, "kind is None; choose one of fast, slow"),
        ("kind", ["fast"], "kind is ['fast']; choose one of fast, slow"),
        ("sizes", 64, "sizes is 64; it must be a list, each item a whole number"),
        ("sizes", "64", "sizes is '64'; it must be a list, each item a whole number"),
        ("sizes", [64, "x"], "sizes[1] is 'x'; it must be a whole number"),
        ("sizes", [64, True], "sizes[1] is True; it must be a whole number"),
        ("parts", {"name": "a"}, "parts is {'name': 'a'}; it must be a list, each item a mapping"),
        ("parts", ["a"], "parts[0] is 'a'; it must be a mapping with name, places, options"),
        ("parts", [{}], "parts[0]"),
        ("parts", [{"nam": "a"}], "parts[0]: unknown key `nam`; did you mean `name`?"),
        ("parts", [{1: "a"}], "parts[0]: unknown key `1`"),
        ("parts", [{"name": "a", "places": [0.5]}], "parts[0]: places[0] is 0.5"),
        ("options", [1], "options is [1]; it must be a mapping"),
        ("options", {1: 2}, "options is {1: 2}; it must be a mapping"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(name, value, words):
    with pytest.raises(ConfigError) as caught:
        build(Settings, {name: value}, "here")
    message = str(caught.value)
    assert message.startswith("here: ")
    assert words in message


def test_an_unknown_key_names_the_source_and_the_nearest():
    with pytest.raises(ConfigError) as caught:
        build(Settings, {"count": 1, "titel": "x"}, "some.yaml")
    assert str(caught.value) == "some.yaml: unknown key `titel`; did you mean `title`?"


def test_nothing_is_suggested_for_a_name_that_is_like_none():
    with pytest.raises(ConfigError) as caught:
        build(Settings, {"zzz": 1}, "some.yaml")
    assert str(caught.value) == "some.yaml: unknown key `zzz`"
    assert suggest("trian", ["train", "eval"]) == "; did you mean `train`?"


def test_what_the_dataclass_refuses_names_the_source():
    with pytest.raises(ConfigError, match=r"^some\.yaml: count must not be negative$"):
        build(Settings, {"count": -1}, "some.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "a: [1",
        "a: b: c",
        "\tx",
        "a: \x00",
        "{[1]: 2}",
        "!!python/none",
        "seed: 2024-13-45",  # has the form of a date, but there is no such date
        pytest.param("[" * 1000, id="deep"),
    ],
)
def test_what_is_not_yaml_is_refused(tmp_path, text):
    with pytest.raises(ConfigError, match="is not YAML") as caught:
        read_yaml(write(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert "settings.yaml" in str(caught.value)


def test_bytes_that_are_not_text_are_refused(tmp_path):
    (tmp_path / "settings.yaml").write_bytes(b"title: \xff\xfe\xfa")
    with pytest.raises(ConfigError, match="is not YAML"):
        read_yaml(tmp_path / "settings.yaml")


@pytest.mark.parametrize("text", ["", "# nothing", "7", "a", "- a: 1", "1: 2", "null: 1"])
def test_yaml_that_is_no_list_of_settings_is_refused(tmp_path, text):
    with pytest.raises(ConfigError, match="must hold `name: value` lines"):
        read_yaml(write(tmp_path, text))


@pytest.mark.parametrize("text", ["seed: 1\nseed: 2", "games:\n- {a: 1, b: 2, a: 3}"])
def test_a_setting_that_is_there_twice_is_refused(tmp_path, text):
    with pytest.raises(ConfigError, match=r"twice|duplicate") as caught:
        read_yaml(write(tmp_path, text))
    assert "settings.yaml" in str(caught.value)


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    with pytest.raises(ConfigError, match="cannot read config") as caught:
        read_yaml(tmp_path / name)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.mkdir [{marker}]",
        "!!python/object/new:os.mkdir [{marker}]",
        "!!python/object/apply:subprocess.check_call [[mkdir, {marker}]]",
        "!!python/object:pathlib.Path {{}}",
        "!!python/name:os.mkdir",
        "!!python/module:os",
    ],
)
def test_yaml_cannot_execute(tmp_path, tag):
    marker = tmp_path / "marker"
    with pytest.raises(ConfigError, match="is not YAML"):
        read_yaml(write(tmp_path, f"env: {tag.format(marker=marker)}"))
    assert not marker.exists()


def test_settings_come_back_from_a_file(tmp_path):
    config = Settings(
        count=3,
        rate=1e-7,
        flag=True,
        title="yes",
        limit=2.0,
        kind="slow",
        sizes=(3, 4),
        parts=(Part(name="a", places=(1,), options={"b": {"c": [1, None]}}), Part(name="1")),
        options={"d": "off"},
    )
    path = write(tmp_path, yaml.safe_dump(to_settings(config)))
    assert build(Settings, read_yaml(path), "here") == config


@given(rate=st.floats(allow_nan=False, allow_infinity=False), title=st.text(), count=st.integers(0))
def test_any_value_comes_back_from_yaml(rate, title, count):
    config = Settings(rate=rate, title=title, count=count)
    text = yaml.safe_dump(to_settings(config))
    assert build(Settings, yaml.safe_load(text), "here") == config


@pytest.mark.parametrize(
    "config",
    [
        PPOConfig(env="Taxi-v4"),
        PPOConfig(
            env="FrozenLake-v1",
            env_kwargs={"is_slippery": False, "desc": ["SF", "FG"]},
            mask_source="none",
            value_clip_range=0.5,
            target_kl=0.01,
            hidden_sizes=(32,),
        ),
        PPOConfig(
            games=(
                Game(env_id="Taxi-v4", action_ids=(0, 1, 2, 3, 4, 5)),
                Game(env_id="Taxi-v4", action_ids=(5, 4, 3, 2, 1, 0), mask_source="info"),
            ),
            num_actions=7,
        ),
    ],
)
def test_ppo_settings_come_back_from_yaml(config):
    text = yaml.safe_dump(to_settings(config))
    assert build(PPOConfig, yaml.safe_load(text), "here") == config


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "set either env or games"),
        ({"env": "A-v0", "games": [{"env_id": "B-v0"}]}, "set either env or games"),
        ({"games": [{"env_id": "B-v0"}], "env_kwargs": {"a": 1}}, "env_kwargs"),
        ({"games": [{"env_id": "B-v0"}], "mask_source": "none"}, "mask_source"),
        ({"num_envs": 0}, "num_envs is 0"),
        ({"games": [{"env_id": "A-v0"}] * 3, "num_envs": 64}, "multiple of the 3 games"),
        ({"total_steps": 0}, "total_steps is 0"),
        ({"num_steps": 0}, "num_steps is 0"),
        ({"num_epochs": 0}, "num_epochs is 0"),
        ({"num_minibatches": 0}, "num_minibatches is 0"),
        ({"num_threads": 0}, "num_threads is 0"),
        ({"num_envs": 3, "num_steps": 5, "num_minibatches": 4}, "num_envs x num_steps = 15"),
        ({"gamma": 1.01}, "gamma is 1.01"),
        ({"gamma": math.nan}, "gamma is nan"),
        ({"gae_lambda": -0.1}, "gae_lambda is -0.1"),
        ({"learning_rate": 0}, "learning_rate is 0.0"),
        ({"learning_rate": "nan"}, "learning_rate is nan"),
        ({"learning_rate": math.inf}, "learning_rate is inf"),
        ({"entropy_coef": math.nan}, "entropy_coef is nan"),
        ({"value_coef": math.nan}, "value_coef is nan"),
        ({"clip_range": 0}, "clip_range is 0.0"),
        ({"max_grad_norm": -1}, "max_grad_norm is -1.0"),
        ({"value_clip_range": -0.2}, "value_clip_range is -0.2"),
        ({"target_kl": 0}, "target_kl is 0.0"),
        ({"hidden_sizes": []}, "hidden_sizes is ()"),
        ({"hidden_sizes": [64, 0]}, "hidden_sizes is (64, 0)"),
        ({"seed": -1}, "seed is -1"),
        ({"eval_period": -1}, "eval_period"),
        ({"eval_episodes": 0}, "eval_episodes is 0"),
        ({"checkpoint_seconds": -1}, "checkpoint_seconds"),
        ({"checkpoint_seconds": math.nan}, "checkpoint_seconds"),
        ({"learning_rat": 1}, "unknown key `learning_rat`; did you mean `learning_rate`?"),
        ({"eval_episode": 1}, "unknown key `eval_episode`; did you mean `eval_episodes`?"),
        ({"algo": "pp0"}, "algo is 'pp0'; set it to one of ppo"),
        ({"algo": None}, "algo is None; set it to one of ppo"),
        ({"algo": ["ppo"]}, "algo is ['ppo']; set it to one of ppo"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, words):
    env = {} if not settings or "games" in settings else {"env": "Taxi-v4"}
    with pytest.raises(ConfigError) as caught:
        runs.parse_config({"algo": "ppo", **env, **settings}, "some.yaml")
    assert str(caught.value).startswith("some.yaml: ")
    assert words in str(caught.value)


def test_a_config_says_what_algorithm_it_is_for():
    with pytest.raises(ConfigError, match=r"some\.yaml: algo is None"):
        runs.parse_config({"env": "Taxi-v4"}, "some.yaml")


def test_derived_values():
    config = PPOConfig(env="Taxi-v4", num_envs=4, num_steps=8, total_steps=65)
    assert config.steps_per_update == 4 * 8
    assert config.num_updates == 3  # 65 steps are more than 2 x 32
    assert config.all_games == (Game(env_id="Taxi-v4"),)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_configs_of_the_repository_hold(path):
    settings = read_yaml(path)
    config = runs.parse_config(settings, str(path))
    assert config.algo == path.parent.name
    defaults = to_settings(type(config.settings)(env="any"))
    repeated = {key for key, value in settings.items() if defaults.get(key, ...) == value}
    assert not repeated, "a config has only what differs from the defaults"


@pytest.mark.usefixtures("types_are_not_checked")
@pytest.mark.parametrize(
    ("cls", "settings", "words"),
    [
        (PPOConfig, {"encoder": "Set"}, "encoder is 'Set'; choose one of layers, set"),
        (PPOConfig, {"mask_source": "Info"}, "mask_source is 'Info'; choose one of auto, info"),
        (RecurrentPPOConfig, {"attention": "Luong"}, "attention is 'Luong'; choose one of none, l"),
        (RecurrentPPOConfig, {"cell": "GRU"}, "cell is 'GRU'; choose one of gru, lstm"),
        (DQNConfig, {"distribution": "C51"}, "distribution is 'C51'; choose one of none, cat"),
        (PQNConfig, {"activation": "ReLU"}, "activation is 'ReLU'; choose one of tanh, relu"),
        (DistillConfig, {"loss": "kl"}, "loss is 'kl'; choose one of policy, reverse"),
        (DistillConfig, {"temperature": "Auto"}, "temperature is 'Auto'; it must be a number or a"),
    ],
)
def test_a_name_that_there_is_not_is_refused_without_a_file_too(cls, settings, words):
    with pytest.raises(ConfigError, match=words):
        cls(env="any", **settings)


@pytest.mark.usefixtures("types_are_not_checked")
def test_a_rule_that_there_is_not_is_refused():
    with pytest.raises(ConfigError, match="rule is 'bounds'; choose one of threshold, bound"):
        ValidityConfig(rule="bounds")


@pytest.mark.usefixtures("types_are_not_checked")
def test_literals_are_checked_wherever_they_are():
    @dataclass
    class Choices:
        maybe: Literal["a", "b"] | None = None
        number: float | Literal["auto"] = "auto"
        text: str = "c"

    for good in ({}, {"maybe": "b", "number": 2}, {"text": "d"}):
        check_literals(Choices(**good))
    for bad in ({"maybe": "c"}, {"number": "c"}, {"number": None}):
        with pytest.raises(ConfigError, match=f"^{next(iter(bad))} is"):
            check_literals(Choices(**bad))
