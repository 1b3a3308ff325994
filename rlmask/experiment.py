"""What a distillation experiment is made of: experts, students, variants, baselines.

DIRECTORY/
  experts/GAME/            runs of the experts that had to be trained
  students/NAME-SEED/      runs of the student and its variants
  baselines/NAME-SEED/     runs without teachers
  evaluations/NAME-SEED.json
  stages.json              wall time of each stage
  report.json, report.md, report.html
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlmask.config import ConfigError, build, read_yaml
from rlmask.jobs import Job
from rlmask.runs import RunConfig, parse_config
from rlmask.vector import Game, game_names, short_names, slug

OWN_EPISODES = 16  # of each game, with which a run ends by itself; the experiment's come after


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Settings of a distillation experiment."""

    experts: tuple[str, ...] = ()
    """Of each game, or one for all: a config to train, a run directory, or module:function."""
    expert_settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings over those of all configs of experts."""
    student: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the distillation, games among them."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the students."""
    variants: Mapping[str, Any] = field(default_factory=dict)
    """Name -> settings of the student that differ."""
    baselines: Mapping[str, Any] = field(default_factory=dict)
    """Name -> settings of a run without teachers, `config` (a file) among them."""
    variant_seeds: tuple[int, ...] = (0,)
    """Of variants and baselines."""
    eval_episodes: int = 100
    """Of each game and player."""
    eval_seed: int = 0
    """Of the episodes, which are the same for all players."""
    eval_stochastic: bool = False
    """All players draw from their policies, in place of always taking the best action."""
    include: str = ""
    """Another experiment, whose settings come first; mappings are put together."""

    def __post_init__(self) -> None:
        """Check what no type can say.

        Raises:
            ValueError: names the field and the remedy.
        """
        if not self.experts or not self.student:
            raise ValueError("an experiment needs experts and a student")
        if not self.seeds or self.eval_episodes < 1:
            raise ValueError("an experiment needs at least one of seeds and of eval_episodes")
        for settings in (self.student, *self.variants.values()):
            for name in ("algo", "teachers", "seed"):
                if name in settings:
                    raise ValueError(f"the student's {name} is set by the experiment; leave it out")
        for name, settings in self.baselines.items():
            if not isinstance(settings, Mapping) or "config" not in settings:
                raise ValueError(f"baseline {name} needs `config`, the file of its settings")


def read_experiment(path: Path) -> ExperimentConfig:
    """Read the config of an experiment, with those that it includes.

    Raises:
        ConfigError: names the file, the key, and the remedy.
    """
    return build(ExperimentConfig, included(path, ()), str(path))


def included(path: Path, before: tuple[Path, ...]) -> dict[str, Any]:
    """Return the settings of a file over those of the file that it includes.

    Raises:
        ConfigError: if a file includes itself.
    """
    if path in before:
        raise ConfigError(f"{path} includes itself")
    settings = read_yaml(path)
    other = settings.pop("include", "")
    if not other:
        return settings
    first = included(Path(other), (*before, path))
    for name, value in settings.items():
        known = first.get(name)
        both = isinstance(value, Mapping) and isinstance(known, Mapping)
        first[name] = {**dict(known or {}), **value} if both else value
    return first


class Experiment:
    """An experiment in its directory.

    Raises:
        ConfigError: if its settings do not hold.
    """

    def __init__(self, config: ExperimentConfig, directory: Path) -> None:
        self.config, self.directory = config, directory
        settings = {"algo": "distill", **config.student}
        self.games: tuple[Game, ...] = parse_config(settings, "student").settings.all_games
        self.full_names = game_names(self.games)
        self.names = short_names(self.full_names)
        if len(config.experts) not in (1, len(self.games)):
            raise ConfigError(
                f"experts names {len(config.experts)} for {len(self.games)} games: give one for "
                "all, or one each"
            )
        count = len(self.games) // len(config.experts)
        experts = list(config.experts) * count
        self.experts = [
            self._expert(*each) for each in zip(experts, self.games, self.names, strict=True)
        ]

    def _expert(self, expert: str, game: Game, name: str) -> Job | str:
        """Return the job that trains an expert, or the teacher that is given."""
        if not expert.endswith((".yaml", ".yml")):
            return expert
        own = {"env": game.env_id, "env_kwargs": dict(game.env_kwargs)}
        own["mask_source"] = game.mask_source
        settings = {**read_yaml(Path(expert)), **self.config.expert_settings, **own}
        if "games" in settings:
            raise ConfigError(f"{expert} has several games; an expert has one")
        config = parse_config(settings, expert)
        if config.algo == "recurrent_ppo":
            raise ConfigError(f"{expert}: a policy that remembers scores no single state; use ppo")
        if getattr(config.settings, "learned_mask", False):
            raise ConfigError(
                f"{expert}: a run with a learned mask teaches nobody; set it to false"
            )
        return Job(name=name, run_dir=self.directory / "experts" / name, settings=settings)

    @property
    def teachers(self) -> list[str]:
        """Where the teacher of each game is."""
        return [str(e.run_dir) if isinstance(e, Job) else e for e in self.experts]

    def student(self, changes: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """Return the settings of a student."""
        options = {"eval_stochastic": self.config.eval_stochastic, "eval_episodes": OWN_EPISODES}
        chosen = {**self.config.student, **changes}
        return {"algo": "distill", **options, **chosen, "teachers": self.teachers, "seed": seed}

    def students(self) -> dict[str, list[Job]]:
        """Return the jobs of the student and its variants, one a seed."""
        wanted = {"student": ({}, self.config.seeds)}
        for name, changes in self.config.variants.items():
            wanted[name] = (changes, self.config.variant_seeds)
        return {
            name: [
                Job(
                    name=f"{name}, seed {seed}",
                    run_dir=self.directory / "students" / f"{slug(name)}-{seed}",
                    settings=self.student(changes, seed),
                )
                for seed in seeds
            ]
            for name, (changes, seeds) in wanted.items()
        }

    def baselines(self) -> dict[str, list[Job]]:
        """Return the jobs of the baselines, one a seed."""
        jobs = {}
        for name, settings in self.config.baselines.items():
            changes = {key: value for key, value in settings.items() if key != "config"}
            whole = {
                **read_yaml(Path(settings["config"])),
                "eval_episodes": OWN_EPISODES,
                **changes,
            }
            jobs[name] = [
                Job(
                    name=f"{name}, seed {seed}",
                    run_dir=self.directory / "baselines" / f"{slug(name)}-{seed}",
                    settings={**whole, "seed": seed},
                )
                for seed in self.config.variant_seeds
            ]
        return jobs

    def evaluation(self) -> RunConfig:
        """Return the games and options with which every player is evaluated."""
        options = {
            "eval_episodes": self.config.eval_episodes,
            "eval_stochastic": self.config.eval_stochastic,
        }
        settings = {**self.student({}, 0), **options}
        return parse_config(settings, "student")
