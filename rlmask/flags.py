"""Words of the command line -> dataclasses, with errors of one line."""

import contextlib
import io
import typing
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import tyro
import yaml
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from rlmask.config import ConfigError, convert, to_settings
from rlmask.vector import Game


def parse(cls: Any, command: str, arguments: list[str], default: Any = None) -> Any:
    """Return the dataclass that the arguments fill in.

    Raises:
        ConfigError: one line, if they do not.
        SystemExit: after `--help`.
    """
    registry = ConstructorRegistry()
    registry.primitive_rule(yaml_rule)
    keywords = {} if default is None else {"default": default}
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                cls, prog=f"rlmask {command}", args=arguments, registry=registry, **keywords
            )
    except SystemExit as error:
        if not error.code:
            raise
        lines = [line.strip("╭╮╰╯│─ ") for line in complaint.getvalue().splitlines()]
        lines = [line for line in lines if line.strip("-")]  # a frame in ASCII
        said = [line for line in lines if not line.startswith("For full helptext")]
        if len(said) > 1 and said[1].lower().startswith(said[0].lower()):  # tyro's title, again
            del said[0]
        raise ConfigError(" ".join(said)) from error
    except ValueError as error:  # what the dataclass itself refuses
        raise ConfigError(f"command line: {error}") from error


def check_range(name: str, value: int, least: int) -> None:
    """Raise `ConfigError` unless least <= value < 2^63."""
    if not least <= value < 2**63:
        wanted = f"at least {least}" if value < least else "below 2^63"
        raise ConfigError(f"--{name} is {value}: it must be {wanted}")


def from_yaml(text: str) -> Any:
    """Return the value that a word of the command line is in YAML."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{text!r} is not YAML: {' '.join(str(error).split())}") from error


def yaml_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Read mappings and lists of games on the command line as YAML."""
    hint = info.type
    is_mapping = typing.get_origin(hint) is not None and hint == Mapping[str, Any]
    if not is_mapping and hint != tuple[Game, ...]:
        return None

    def read(words: list[str]) -> Any:
        return convert(from_yaml(words[0]), hint, "command line")

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="YAML",
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, Mapping | tuple),
        str_from_instance=lambda value: [
            yaml.safe_dump(to_settings(value), default_flow_style=True).strip()
        ],
    )


def games_of(arguments: list[str]) -> dict[str, Any]:
    """Return the settings `env` or `games` that the arguments give."""
    words = [*arguments, ""]
    for word, following in pairwise(words):
        name, equals, value = word.partition("=")
        value = value if equals else following
        if name == "--env":
            return {"env": value}
        if name == "--games":
            return {"games": from_yaml(value)}
    return {}
