"""Records that flow through the framework, and the interfaces made of pure functions.

Axis legend (used in every docstring of the package):
  `S` seeds, `N` environments of one seed, `B` batch, `T` time (`L` the length of a training
  window), `H` imagination horizon, `M` imagination starts, `D`/`F` features, `A` actions.

Everything is written for **one seed**, and where no batch axis stands in the signature also for
**one stream**; `jax.vmap` adds environments, imagination starts and seeds outside.

Records are `NamedTuple`s (native pytrees; never add two of them with `+`). An algorithm is a
record of functions: replace a part with `record._replace(act=my_act)`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax

Array = jax.Array
PyTree = Any
Key = jax.Array  # a typed PRNG key (`jax.random.key`); every function that takes one consumes it
Metrics = dict[str, tuple[Array, Array]]  # "group/name" -> (sum, count); mean = sum / count

# ------------------------------------------------------------------------------------------- data


class Timestep(NamedTuple):
    """What the environment says at one row. The reward arrived *with* this observation."""

    observation: PyTree
    reward: Array  # [] float32; 0 where is_first
    is_first: Array  # [] bool: the first observation of an episode
    is_last: Array  # [] bool: the last one; the next row is a reset
    is_terminal: Array  # [] bool: nothing follows (discount 0); a time limit is last, not terminal


class Step(NamedTuple):
    """One stored row: a timestep and the action chosen *after* seeing it."""

    timestep: Timestep
    action: PyTree


Trajectory = Step  # a Step with leading [T]; it may cross episodes, `is_first` marks the seams


class Transition(NamedTuple):
    """(s, a, r, s'): what arrived after `action`; see `mbrl_jax.replay.transitions`."""

    observation: PyTree
    action: PyTree
    reward: Array  # []
    next_observation: PyTree
    discount: Array  # [] 1 - is_terminal of the next row, gamma not included
    valid: Array  # [] 0 or 1 float: rows that are no transition (resets, unused slots) count 0


class Prediction(NamedTuple):
    """What a world model expects to have arrived with a latent."""

    reward: Array  # []
    discount: Array  # [] probability that the episode goes on, gamma not included
    extras: dict[str, Array]  # e.g. "disagreement": []


class Starts(NamedTuple):
    """Imagination starts."""

    latent: PyTree  # [M] latents
    weight: Array  # [M] 1 - is_terminal of the row: nothing is trained beyond a terminal


class LearnerState(NamedTuple):
    """Everything that one learner (world model or behaviour) changes."""

    params: PyTree  # differentiated
    stats: PyTree  # running statistics, target networks; never differentiated
    opt: PyTree  # optimiser state


# -------------------------------------------------------------------------------- specifications


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """Shape and dtype of one observation leaf, without leading axes."""

    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class DiscreteSpec:
    """An action in `0 … num_actions - 1`, stored as int32 []."""

    num_actions: int


@dataclasses.dataclass(frozen=True)
class BoundedSpec:
    """A real action in [-1, 1]^size, stored as float32 [size]; adaptors rescale."""

    size: int


@dataclasses.dataclass(frozen=True)
class EnvSpec:
    """Hashable description of an environment: what `Config.make(spec)` needs to know."""

    observation: ArraySpec
    action: DiscreteSpec | BoundedSpec
    # "separate": an episode ends with a row `is_last`, the next row is `is_first` with reward 0.
    # "merged": the end is never seen; the `is_first` row of the next episode carries the reward and
    # the `is_terminal` of the one before, so losses on rewards and ends must not mask first rows.
    seam: Literal["separate", "merged"] = "separate"


# ---------------------------------------------------------------------------------------- configs


def number(default: float, doc: str = "") -> Any:
    """A config field that may be traced (learning rate, entropy scale, gamma).

    Numbers never decide shapes or Python branches, so a sweep can vmap over them.
    """
    return dataclasses.field(default=default, metadata={"number": True, "doc": doc})


def switch(default: Any, *, published: Any, better: Any, why: str, number: bool = False) -> Any:
    """A config field where a published system does something odd, or leaves something out.

    `python -m launch.switches` lists all of them.

    Args:
      default: of the field: one of the two.
      published: what the published code does.
      better: what we would choose.
      why: when to want which, in a line.
      number: as for `number`.
    """
    metadata = {"published": published, "better": better, "why": why, "number": number, "doc": why}
    return dataclasses.field(default=default, metadata=metadata)


def cached_make(make: Callable) -> Callable:
    """Cache `make(config, …)`: equal configs give the same record and so a single compile.

    A config that holds a traced number cannot be hashed and is built afresh.
    """
    cached = functools.lru_cache(maxsize=None)(make)

    @functools.wraps(make)
    def wrapper(*args):
        try:
            return cached(*args)
        except TypeError as error:
            if "unhashable" not in str(error):
                raise
            return make(*args)

    return wrapper


# ------------------------------------------------------------------------------------- interfaces


class SequenceCore(NamedTuple):
    """A recurrent core over vectors; single stream.

    The carry after row t is what row t + 1 continues from. A reset (`is_first[t]`) acts at t: the
    state is emptied *before* row t is consumed.
    """

    init: Callable  # (key) -> params
    initial_carry: Callable  # () -> carry
    step: Callable  # (params, carry, x [D], is_first []) -> (carry, output [F])
    unroll: Callable  # (params, carry, xs [T, D], is_first [T]) -> (carry, outputs [T, F], Entries)
    carry_at: Callable  # (entries, t) -> the carry after t + 1 steps; entries may be compact
    width: int  # F


class WorldModel(NamedTuple):
    """A world model as pure functions; single stream except where [B, T] stands.

    The latent of row t holds the core carry after row t - 1 (empty where `is_first[t]` or t = 0),
    the output of row t - 1, and the stochastic part of row t.
    """

    init: Callable  # (key) -> LearnerState
    initial_latent: Callable  # () -> Latent (a private pytree)
    observe: Callable  # (state, key, latent, timestep, prev_action) -> Latent
    observe_sequence: Callable  # (state, key, latent, prev_action, trajectory [T]) -> Entries
    latent_at: Callable  # (entries, t) -> Latent of row t: imagination starts from ANY row
    imagine: Callable  # (state, key, latent, action) -> Latent, from the prior
    predict: Callable  # (state, latent) -> Prediction of what arrived with this latent
    features: Callable  # (state, latent) -> [F]
    decode: Callable  # (state, latent) -> mean of the observation
    loss: (
        Callable  # (params, stats, key, batch [B, L+1]) -> (loss [], (Entries [B], stats, Metrics))
    )
    # (state, key, batch [B, L+1]) -> (LearnerState, Entries [B], Metrics); a metric that is not
    # finite freezes the seed and names the cause, so report losses and the gradient norm
    update: Callable


class BoundModel(NamedTuple):
    """A world model with its state bound: what behaviours and planners receive."""

    initial_latent: Callable  # ()
    observe: Callable  # (key, latent, timestep, prev_action)
    observe_sequence: Callable  # (key, latent, prev_action, trajectory)
    latent_at: Callable  # (entries, t)
    imagine: Callable  # (key, latent, action)
    predict: Callable  # (latent)
    features: Callable  # (latent)
    decode: Callable  # (latent)


def bind(model: WorldModel, state: LearnerState) -> BoundModel:
    """Bind one learner state to the functions of `model`."""
    bound = {
        name: functools.partial(getattr(model, name), state)
        for name in ("observe", "observe_sequence", "imagine", "predict", "features", "decode")
    }
    return BoundModel(initial_latent=model.initial_latent, latent_at=model.latent_at, **bound)


class Behaviour(NamedTuple):
    """How to act, and how to get better at it with a world model."""

    init: Callable  # (key, features [F]: an example) -> LearnerState
    initial_carry: Callable  # () -> Carry: a warm-started plan, …; () for actors
    # (state, key, carry, latent, model: BoundModel, *, explore) -> (Carry, action)
    act: Callable
    # (state, key, model, starts: Starts, batch, iteration) -> (LearnerState, Metrics)
    update: Callable
    # (params, stats, key, model, entries, batch) -> (loss [], (stats, Metrics)): what trains the
    # representation beside the world model's own loss; None where nothing does
    representation_loss: Callable | None = None


class AgentState(NamedTuple):
    """What learning changes in one seed."""

    world_model: LearnerState
    behaviour: LearnerState
    # [] int32: iteration (modulo 2^32) of the first non-finite loss or gradient, or -1
    frozen_at: Array


class AgentCarry(NamedTuple):
    """What acting carries from row to row in one environment."""

    memory: PyTree  # of the episode so far: `mbrl_jax.acting`
    prev_action: PyTree
    behaviour: PyTree


class Agent(NamedTuple):
    """World model and behaviour as one thing that acts and updates."""

    init: Callable  # (key) -> AgentState
    initial_carry: Callable  # () -> AgentCarry
    act: Callable  # (state, key, carry, timestep, *, explore) -> (AgentCarry, action)
    # (state, key, replay: ReplayState, iteration) -> (AgentState, counters, Metrics)
    update: Callable


class ReplayState(NamedTuple):
    """Stored rows, and the small leaves that sampling changes.

    The storage is read-only inside a learning branch; only `counters` leave it.
    """

    storage: PyTree  # rows [C, N, …]
    counters: PyTree  # sampling counts, priorities, rows waiting to be added
    position: Array  # [] int32: rows written so far (per lane); see `replay.ring.advance`


class RowStore(NamedTuple):
    """Where a replay keeps rows in the order in which they came, one an iteration that collects.

    A checkpoint then takes only the rows that are new since the one before.
    """

    get: Callable  # (ReplayState) -> rows [C, …]; row i lies in slot i mod C
    put: Callable  # (ReplayState, rows or None) -> ReplayState with those instead
    capacity: int  # C


class Replay(NamedTuple):
    """Storage of any pytree, and samplers over it."""

    init: Callable  # (example row: Step of one lane) -> ReplayState
    add: Callable  # (state, rows [N]) -> ReplayState
    sample: Callable  # (state, key, *, stream) -> (counters, batch, indices)
    write_back: Callable  # (counters, indices, values) -> counters
    rows: RowStore | None = None  # None: every checkpoint takes the whole state


class Environment(NamedTuple):
    """A JAX environment in the time convention of `mbrl_jax.envs.spec`; single lane."""

    spec: EnvSpec
    reset: Callable  # (key) -> (EnvState, Timestep with is_first)
    step: Callable  # (state, key, action) -> (EnvState, Timestep)


class HostEnvironment(NamedTuple):
    """Open lanes that step outside of jit (EnvPool, dm_control), in the same convention.

    Arrays are NumPy's, [S, N, …]; what was returned is never written to again.
    """

    reset: Callable  # (lanes [S, N] bool, None: all) -> Timestep: those lanes begin new episodes
    send: Callable  # (actions [S, N]): begin to step; the caller can work meanwhile
    receive: Callable  # () -> Timestep [S, N] that the actions led to
    close: Callable  # ()


class HostEnvironments(NamedTuple):
    """What a config of host environments makes: their description, and how to open lanes."""

    spec: EnvSpec
    # (lane seeds [S, N]: integers in 0 … 2^31 - 1, *, evaluation: bool) -> HostEnvironment;
    # in evaluation rewards are raw, and nothing but the end of an episode ends it
    open: Callable
