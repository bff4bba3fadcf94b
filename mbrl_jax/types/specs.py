"""What an environment looks like from outside: hashable descriptions that `make` functions read."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """Shape and dtype of one observation leaf, without leading axes."""

    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class DictSpec:
    """An observation of named leaves, in the order of their names; the observation is a dict.

    Cameras, an action mask (`"action_mask"`) and task ids are leaves like others.
    """

    leaves: tuple[tuple[str, ArraySpec], ...]


@dataclasses.dataclass(frozen=True)
class DiscreteSpec:
    """An action in `0 … num_actions - 1`, stored as int32 []."""

    num_actions: int


@dataclasses.dataclass(frozen=True)
class MultiDiscreteSpec:
    """Several discrete choices at once: int32 [k], the i-th in `0 … num_actions[i] - 1`."""

    num_actions: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class BoundedSpec:
    """A real action in [-1, 1]^size, stored as float32 [size]; adaptors rescale."""

    size: int


OneActionSpec = DiscreteSpec | MultiDiscreteSpec | BoundedSpec


@dataclasses.dataclass(frozen=True)
class DictActionSpec:
    """Several actions at once, in the order of their names; the action is a dict.

    Raises ValueError without actions, for a name that stands twice, and for dictionaries inside.
    """

    leaves: tuple[tuple[str, OneActionSpec], ...]

    def __post_init__(self):
        if len({name for name, _ in self.leaves}) != max(1, len(self.leaves)):
            raise ValueError("a DictActionSpec needs at least one action, each with its own name")
        if nested := [name for name, leaf in self.leaves if not isinstance(leaf, OneActionSpec)]:
            raise ValueError(
                f"action {nested[0]!r} is no DiscreteSpec, MultiDiscreteSpec or BoundedSpec: write "
                "a dictionary without others inside"
            )
        # The order in which jax flattens dictionaries.
        object.__setattr__(self, "leaves", tuple(sorted(self.leaves, key=lambda leaf: leaf[0])))


ObservationSpec = ArraySpec | DictSpec
ActionSpec = OneActionSpec | DictActionSpec


@dataclasses.dataclass(frozen=True)
class EnvSpec:
    """Hashable description of an environment: what `Config.make(spec)` needs to know."""

    observation: ObservationSpec
    action: ActionSpec
    # "separate": an episode ends with a row `is_last`, the next row is `is_first` with reward 0.
    # "merged": the end is never seen; the `is_first` row of the next episode carries the reward and
    # the `is_terminal` of the one before, so losses on rewards and ends must not mask first rows.
    seam: Literal["separate", "merged"] = "separate"
    extras: tuple[str, ...] = ()  # names in `Timestep.extras`
