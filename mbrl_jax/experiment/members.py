"""The members of one program: seeds, and beside them numbers that a sweep varies inside of it."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mbrl_jax.experiment import config
from mbrl_jax.experiment.experiment import Experiment, System, build
from mbrl_jax.loops import seeds
from mbrl_jax.types import Key

Inside = tuple[tuple[str, tuple[float, ...]], ...]  # (path, values) of every number that varies


@dataclasses.dataclass(frozen=True)
class Members:
    """Every setting of `inside` with every seed; member k has setting k // S and seed k % S.

    A member computes what a run of its own with those numbers and that seed would, but for rounding
    (a number that the compiler knows is folded into others). Members of one seed begin alike.
    """

    seed: int = 0
    num_seeds: int = 1  # S, of each setting
    inside: Inside = ()
    first_seed: int = 0  # lane of the first one: those before it are trained elsewhere

    def __post_init__(self):
        if self.num_seeds < 1:
            raise config.ConfigError(f"--num_seeds={self.num_seeds} must be at least 1")
        if not 0 <= self.seed < 2**32:
            raise config.ConfigError(f"--seed={self.seed} must lie in 0 … 2^32 - 1")
        if not 0 <= self.first_seed <= 2**31 - self.num_seeds:
            raise config.ConfigError(
                f"--first_seed={self.first_seed} must lie in 0 … 2^31 - num_seeds"
            )

    def __len__(self) -> int:
        return self.num_seeds * math.prod(len(values) for _, values in self.inside)

    @property
    def settings(self) -> list[dict[str, float]]:
        """{path: number} of each setting; the last path varies fastest."""
        paths = [path for path, _ in self.inside]
        every = itertools.product(*(values for _, values in self.inside))
        return [dict(zip(paths, values, strict=True)) for values in every]

    def setting(self, member: int) -> dict[str, float]:
        """{path: number} of one member."""
        found, place = {}, member // self.num_seeds
        for path, values in reversed(self.inside):
            place, digit = divmod(place, len(values))
            found[path] = values[digit]
        return dict(reversed(found.items()))

    def require_unset(self, before: Experiment, after: Experiment) -> None:
        """Raise ConfigError where a number that differs from member to member was changed.

        Each member has its own, so that the change would be ignored.
        """
        old, new = config.numbers(before), config.numbers(after)
        for path, values in self.inside:
            if old.get(path) != new.get(path):
                raise _set_and_varied(path, values)

    def keys(self) -> Key:
        """Keys of all members, [padded]."""

        def make():
            keys = seeds.seed_keys(self.seed, self.num_seeds, self.first_seed)
            return keys[self._rows() % self.num_seeds]

        return jax.jit(make, out_shardings=seeds.seed_sharding(len(self)))()

    def _rows(self) -> np.ndarray:
        """The member of each row [padded]."""
        return np.minimum(np.arange(seeds.padded(len(self))), len(self) - 1)

    def over(
        self,
        system_of: Callable[[Mapping[str, Any]], System],
        pick: Callable[[System], Callable],
        num_shared: int = 0,
        donate: bool = False,
    ) -> Callable:
        """`seeds.over_seeds` of the function that `pick` takes from the system of a member.

        It takes `numbers()` in front of the function's own arguments, the first of which it may
        `donate`. `system_of` takes {path: number}, traced, of a member; {} is the experiment as it
        stands.
        """
        if not self.inside:
            given = (0,) if donate else ()
            return seeds.over_seeds(pick(system_of({})), len(self), num_shared, given)

        def of_member(numbers, *args):
            return pick(system_of(numbers))(*args)

        return seeds.over_seeds(of_member, len(self), num_shared, (1,) if donate else ())

    def numbers(self) -> tuple[dict[str, jax.Array], ...]:
        """What a function of `over` takes first: ({path: numbers [padded]},), or nothing.

        An argument and no constant: members with other numbers run the same program.
        """
        if not self.inside:
            return ()
        of_row = self._rows() // self.num_seeds
        table = {
            path: np.array([setting[path] for setting in self.settings], np.float32)[of_row]
            for path, _ in self.inside
        }
        return (jax.jit(lambda: table, out_shardings=seeds.seed_sharding(len(self)))(),)

    def same_programs(self, other: "Members") -> bool:
        """Whether `other` differs in seeds and values alone, so that it runs the same programs."""
        shape = lambda one: (one.num_seeds, [(path, len(v)) for path, v in one.inside])  # noqa: E731
        return shape(self) == shape(other)


def systems(experiment: Experiment, system: System) -> Callable[[Mapping[str, Any]], System]:
    """({path: number}) -> the experiment's system with other numbers; {} is `system` itself."""

    def system_of(numbers):
        return build(config.with_numbers(experiment, numbers)) if numbers else system

    return system_of


def parse_inside(
    experiment: Experiment, assignments: Sequence[str], settings: Sequence[str] = ()
) -> Inside:
    """Read "path=value,value,…" for each number that varies inside a program.

    Raises ConfigError for a field that may not be traced, an ill-typed value, a repeated path, and
    one that `settings` ("path=value") set as well.
    """
    inside = tuple(_parse(experiment, assignment) for assignment in _distinct(assignments))
    require_not_set(inside, settings)
    return inside


def require_not_set(inside: Inside, settings: Sequence[str]) -> None:
    """Raise ConfigError where "path=value" sets a number that differs from member to member."""
    paths = {setting.partition("=")[0].strip() for setting in settings}
    for path, values in inside:
        if path in paths:
            raise _set_and_varied(path, values)


def _set_and_varied(path: str, values: Sequence[float]) -> config.ConfigError:
    return config.ConfigError(
        f"{path} is {', '.join(f'{x:g}' for x in values)} from member to member of this run "
        f"(--sweep_inside), and cannot be set for all of them: leave out --set={path}"
    )


def _parse(experiment: Experiment, assignment: str) -> tuple[str, tuple[float, ...]]:
    path, _, text = assignment.partition("=")
    path = path.strip()
    values = tuple(_value(experiment, path, word) for word in text.split(","))
    if len({np.float32(value) for value in values}) < len(values):
        raise config.ConfigError(
            f"--sweep_inside={assignment}: a value stands there twice (two are equal in float32, "
            "in which members compute)"
        )
    return path, values


def _value(experiment: Experiment, path: str, word: str) -> float:
    changed = config.override(experiment, [f"{path}={word}"])
    numbers = config.numbers(changed)
    if path not in numbers:
        raise config.ConfigError(
            f"--sweep_inside={path}: it decides more than a number in the program and needs a "
            f"program of its own (launch.sweep --grid={path}=…); inside one may vary "
            f"{', '.join(sorted(numbers))}"
        )
    config.validate(changed)
    return float(numbers[path])


def _distinct(assignments: Sequence[str]) -> Sequence[str]:
    paths = [assignment.partition("=")[0].strip() for assignment in assignments]
    if repeated := {path for path in paths if paths.count(path) > 1}:
        raise config.ConfigError(f"--sweep_inside names {sorted(repeated)[0]} twice")
    return assignments
