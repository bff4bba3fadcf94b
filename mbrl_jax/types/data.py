"""Records that flow through the framework.

Records are `NamedTuple`s (native pytrees; never add two of them with `+`).
"""

from typing import Any, NamedTuple

import jax

Array = jax.Array
PyTree = Any
Key = jax.Array  # a typed PRNG key (`jax.random.key`); every function that takes one consumes it
Metrics = dict[str, tuple[Array, Array]]  # "group/name" -> (sum, count); mean = sum / count


class Timestep(NamedTuple):
    """What the environment says at one row. The reward arrived *with* this observation."""

    observation: PyTree
    reward: Array  # [] float32; 0 where is_first
    is_first: Array  # [] bool: the first observation of an episode
    is_last: Array  # [] bool: the last one; the next row is a reset
    is_terminal: Array  # [] bool: nothing follows (discount 0); a time limit is last, not terminal
    # what else it says, by name ("cost", "success"): [] float32, 0 where is_first. Summed over an
    # episode into "episode/NAME"
    extras: dict[str, Array] = {}


class Step(NamedTuple):
    """One stored row: a timestep and the action chosen *after* seeing it."""

    timestep: Timestep
    action: PyTree
    extras: dict[str, PyTree] = {}  # what the agent stores with a row: "log_prob", "latent", …


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
    extras: dict[str, Array]  # of any shape: "disagreement" [], "action_mask" [A], …


class Starts(NamedTuple):
    """Imagination starts."""

    latent: PyTree  # [M] latents
    weight: Array  # [M] 1 - is_terminal of the row: nothing is trained beyond a terminal


class LearnerState(NamedTuple):
    """Everything that one learner (world model or behaviour) changes."""

    params: PyTree  # differentiated
    stats: PyTree  # running statistics, target networks; never differentiated
    opt: PyTree  # optimiser state


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
    behaviour: PyTree  # a warm-started plan, …; begins anew where a row is the first of an episode
    record: dict[str, PyTree] = {}  # what is stored with the row: `Step.extras`


class ReplayState(NamedTuple):
    """Stored rows, and the small leaves that sampling changes.

    The storage is read-only inside a learning branch; only `counters` leave it.
    """

    storage: PyTree  # rows [C, N, …]
    counters: PyTree  # sampling counts, priorities, rows waiting to be added
    position: Array  # [] int32: rows written so far (per lane); see `replay.ring.advance`
    # data sets by name, rows [R, …]: the same for all seeds, never written, in no checkpoint. The
    # loop puts them here for an update and takes them out again
    fixed: dict[str, PyTree] = {}
