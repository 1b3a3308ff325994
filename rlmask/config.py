"""Configs: a YAML file on top of the defaults of a frozen dataclass, checked key by key."""

import contextlib
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

Config = TypeVar("Config")


class ConfigError(ValueError):
    """A config has an unknown key, a value of the wrong type, or settings that contradict."""


class UniqueKeyLoader(yaml.SafeLoader):
    """YAML's safe loader, which takes the last of two equal keys without a word; this one minds."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping of a node."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"the key `{key}` is there twice")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings; nothing in it can execute.

    Raises:
        ConfigError: if it cannot be read, is not YAML, or is not a mapping of names to values.
    """
    try:
        settings = UniqueKeyLoader(path.read_text()).get_single_data()
    except OSError as error:
        raise ConfigError(f"cannot read config {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise ConfigError(f"{path} must hold `name: value` lines, one for each setting")
    return settings


def build(cls: type[Config], settings: Mapping[Any, Any], source: str) -> Config:
    """Return a config dataclass with these settings over its defaults.

    Args:
        source: where the settings come from, for error messages.

    Raises:
        ConfigError: naming the source, the key, and the nearest name or the type that is wanted.
    """
    hints = typing.get_type_hints(cls)
    for key in settings:
        if key not in hints:
            raise ConfigError(f"{source}: unknown key `{key}`{suggest(str(key), list(hints))}")
    values = {
        key: convert(value, hints[key], f"{source}: {key}") for key, value in settings.items()
    }
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{source}: {error}") from error


def check_at_least(config: Any, least: int, *names: str) -> None:
    """Raise `ValueError` unless each of these settings is None or at least so much."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not value >= least:
            raise ValueError(f"{name} is {value}: it must be at least {least}")


def check_positive(config: Any, *names: str) -> None:
    """Raise `ValueError` unless each of these settings is None or a positive number."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise ValueError(f"{name} is {value}: it must be positive")


def check_finite(config: Any, *names: str) -> None:
    """Raise `ValueError` unless each of these settings is a finite number."""
    for name in names:
        if not math.isfinite(getattr(config, name)):
            raise ValueError(f"{name} is {getattr(config, name)}: it must be finite")


def check_unit_interval(config: Any, *names: str) -> None:
    """Raise `ValueError` unless each of these settings is in 0..1, or None."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}: it must be in 0..1")


def check_literals(config: Any) -> None:
    """Raise `ConfigError` unless each setting that takes one of some names is one of them."""
    for name, hint in typing.get_type_hints(type(config)).items():
        kinds = [typing.get_origin(kind) for kind in (hint, *typing.get_args(hint))]
        if Literal in kinds:
            convert(getattr(config, name), hint, name)


def check_envs(config: Any) -> None:
    """Check the settings that every algorithm has of its envs and its network.

    Raises:
        ValueError: names the settings and the remedy.
    """
    check_literals(config)
    if bool(config.env) == bool(config.games):
        raise ValueError("set either env or games")
    if config.games and (config.env_kwargs or config.mask_source != "auto"):
        raise ValueError("with games, env_kwargs and mask_source belong to each of the games")
    num_games = max(1, len(config.games))
    if config.num_envs < 1 or config.num_envs % num_games:
        raise ValueError(
            f"num_envs is {config.num_envs}: it must be a positive multiple of the "
            f"{num_games} game{'s' * (num_games > 1)}"
        )
    check_at_least(config, 1, "total_steps", "num_steps", "num_threads")
    if any(filters < 1 for filters in config.conv_filters):
        raise ValueError(f"conv_filters is {config.conv_filters}: each layer needs at least one")
    if not config.hidden_sizes or min(config.hidden_sizes) < 1:
        raise ValueError(f"hidden_sizes is {config.hidden_sizes}: give at least one positive width")
    if not 0 <= config.seed < 2**63:
        raise ValueError(f"seed is {config.seed}: it must be in 0..2^63-1")


def check_equal_shares(config: Any) -> None:
    """Raise `ValueError` unless a minibatch can have equal shares of all games."""
    num_games = len(config.all_games)
    if config.batch_size % num_games:
        raise ValueError(
            f"batch_size is {config.batch_size}: it must be a multiple of the {num_games} games, "
            "which have equal shares"
        )


def suggest(name: str, known: list[str]) -> str:
    """Return `; did you mean ...?`, or nothing if no known name is near."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean `{near[0]}`?" if near else ""


def convert(value: Any, hint: Any, where: str) -> Any:
    """Return a value as its type, or raise `ConfigError`; nothing is rounded or guessed.

    An int is a float, and so is `1e-3` (which YAML 1.1 reads as text); a list is a tuple.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        inner = [argument for argument in arguments if argument is not type(None)]
        if len(inner) == 1:
            return convert(value, inner[0], where)
        for alternative in inner:
            with contextlib.suppress(ConfigError):
                return convert(value, alternative, where)
        wanted = " or ".join(map(describe, inner))
        raise ConfigError(f"{where} is {value!r}; it must be {wanted}")
    if origin is Literal:
        if value in arguments:
            return value
        wanted = ", ".join(str(argument) for argument in arguments)
        raise ConfigError(f"{where} is {value!r}; choose one of {wanted}")
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(convert(item, arguments[0], f"{where}[{i}]") for i, item in enumerate(value))
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return build(typing.cast(type, hint), value, where)
    if origin in (dict, Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return dict(value)
    elif hint is float and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError):
            pass
    elif (
        isinstance(hint, type)
        and isinstance(value, hint)
        and isinstance(value, bool) == (hint is bool)
    ):
        return value
    raise ConfigError(f"{where} is {value!r}; it must be {describe(hint)}")


def describe(hint: Any) -> str:
    """Return a type in words."""
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        return f"a list, each item {describe(typing.get_args(hint)[0])}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if dataclasses.is_dataclass(hint):
        return "a mapping with " + ", ".join(field.name for field in dataclasses.fields(hint))
    return names.get(hint, "a mapping")


def to_settings(config: Any) -> Any:
    """Return a config as plain values that `build` reads back."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return (
            {key: plain(item) for key, item in value.items()}
            if isinstance(value, Mapping)
            else value
        )

    return plain(config)
