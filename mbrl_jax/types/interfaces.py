"""The interfaces: records of pure functions, and what each function takes and gives.

An algorithm is a record of functions, as in optax: replace a part with `record._replace(act=mine)`.
A `Protocol` says how a function is called; any callable with those arguments serves.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

import jax

from mbrl_jax.types.data import (
    AgentCarry,
    AgentState,
    Array,
    Key,
    LearnerState,
    Metrics,
    Prediction,
    PyTree,
    ReplayState,
    Starts,
    Step,
    Timestep,
    Trajectory,
)
from mbrl_jax.types.specs import EnvSpec

NOTHING: Mapping[str, Any] = MappingProxyType({})


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
    # (params, key, carry, xs, is_first): as `unroll`, with the dropout of training; None: none
    unroll_noisy: Callable | None = None


# ----------------------------------------------------------------------------------- world models


class Observe(Protocol):
    """Filter one real row."""

    def __call__(
        self, state: LearnerState, key: Key, latent: PyTree, timestep: Timestep, prev_action: PyTree
    ) -> PyTree:
        """The latent of the row; where `is_first`, what was before is forgotten."""


class ObserveSequence(Protocol):
    """Filter rows [T], in parallel where the model can."""

    def __call__(
        self,
        state: LearnerState,
        key: Key,
        latent: PyTree,
        prev_action: PyTree,
        trajectory: Trajectory,
    ) -> PyTree:
        """Entries: compact memory of the rows, which `latent_at` reads."""


class Imagine(Protocol):
    """One imagined row."""

    def __call__(self, state: LearnerState, key: Key, latent: PyTree, action: PyTree) -> PyTree:
        """The latent that follows `action`, from the prior."""


class ModelLoss(Protocol):
    """What a world model is trained on."""

    def __call__(self, params: PyTree, stats: PyTree, key: Key, batch: Trajectory) -> Any:
        """(loss [], (Entries [B], stats, Metrics)) of windows [B, L+1].

        Entries are differentiable: who trains on them jointly takes a gradient through them.
        """


class Apply(Protocol):
    """The optimiser's part of an update."""

    def __call__(
        self, state: LearnerState, grads: PyTree, stats: PyTree
    ) -> tuple[LearnerState, Array]:
        """One optimiser step; (the state with new `stats`, norm [] of the raw gradients)."""


class ModelUpdate(Protocol):
    """One update of a world model."""

    def __call__(
        self, state: LearnerState, key: Key, batch: Trajectory
    ) -> tuple[LearnerState, PyTree, Metrics]:
        """(state, Entries [B], Metrics).

        A metric that is not finite freezes the seed and names the cause, so report losses and the
        gradient norm.
        """


class NamedModelUpdate(Protocol):
    """A further update of a world model: "reward_consistency", "tokeniser", …."""

    def __call__(
        self, state: LearnerState, key: Key, batch: Trajectory
    ) -> tuple[LearnerState, Metrics]:
        """(state, Metrics) after one step on windows [B, L+1] of the stream "model"."""


class _WorldModel(NamedTuple):
    """A world model as pure functions; single stream except where [B, T] stands.

    The latent of row t holds the core carry after row t - 1 (empty where `is_first[t]` or t = 0),
    the output of row t - 1, and the stochastic part of row t.
    """

    init: Callable[[Key], LearnerState]
    initial_latent: Callable[[], PyTree]  # a private pytree
    observe: Observe
    observe_sequence: ObserveSequence
    latent_at: Callable[[PyTree, Array], PyTree]  # (entries, t): imagination starts from ANY row
    imagine: Imagine
    predict: Callable[[LearnerState, PyTree], Prediction]  # what arrived with this latent
    features: Callable[[LearnerState, PyTree], Array]  # [F]
    # mean of the observation; None: the model draws no pictures and feeds no model buffer
    decode: Callable[[LearnerState, PyTree], PyTree] | None
    loss: ModelLoss | None = None
    apply: Apply | None = None  # None: no gradient (least squares, Gaussian processes, …)
    # derived from `loss` and `apply` unless given; never None in a record that was made
    update: ModelUpdate = None  # type: ignore[assignment]
    updates: Mapping[str, NamedModelUpdate] = NOTHING
    markov: bool = False  # stored observations may be observed again, as first rows
    # "": ends are learned or known; else the discount is always 1, and this says what learns them
    endless: str = ""
    begins_windows: bool = (
        False  # its loss reads `extras["latent"]` of first rows: `replay.latents`
    )


class WorldModel(_WorldModel):
    """See the fields' comments; `update` follows `loss` and `apply` wherever they are replaced."""

    __slots__ = ()

    def __new__(cls, *args, **fields):
        """Raise ValueError without a way to learn: `loss` and `apply`, or `update`."""
        self = super().__new__(cls, *args, **fields)
        given: Any = self.update
        if given is not None:
            return self
        if self.loss is None or self.apply is None:
            raise ValueError("a WorldModel needs loss and apply, or an update of its own")
        return super().__new__(cls, **(self._asdict() | {"update": Derived(self.loss, self.apply)}))

    def _replace(self, **changes):
        """A copy with other functions.

        Raises ValueError where `loss` or `apply` would be replaced beside an update that does not
        use them.
        """
        if {"loss", "apply"} & set(changes) and "update" not in changes:
            if not isinstance(self.update, Derived):
                raise ValueError(
                    "this world model has an update of its own, which would go on with the old "
                    "loss: replace update too"
                )
            changes = {"update": None} | changes
        return type(self)(**(self._asdict() | changes))


@dataclasses.dataclass(frozen=True)  # no tuple: jit keeps weak references to what it is given
class Derived:
    """The update that follows from a loss and an optimiser step."""

    loss: ModelLoss
    apply: Apply

    def __call__(
        self, state: LearnerState, key: Key, batch: Trajectory
    ) -> tuple[LearnerState, PyTree, Metrics]:
        """One optimiser step on windows [B, L+1]; nothing flows back through the entries."""
        gradient = jax.value_and_grad(self.loss, has_aux=True)
        (_, aux), grads = gradient(state.params, state.stats, key, batch)
        entries, stats, metrics = aux
        state, norm = self.apply(state, grads, stats)
        one = jax.numpy.ones(())
        return state, jax.lax.stop_gradient(entries), metrics | {"model/gradient_norm": (norm, one)}


class BoundModel(NamedTuple):
    """A world model with its state bound: what behaviours and planners receive."""

    initial_latent: Callable  # ()
    observe: Callable  # (key, latent, timestep, prev_action)
    observe_sequence: Callable  # (key, latent, prev_action, trajectory)
    latent_at: Callable  # (entries, t)
    imagine: Callable  # (key, latent, action)
    predict: Callable  # (latent)
    features: Callable  # (latent)
    decode: Callable | None  # (latent)


def bind(model: WorldModel, state: LearnerState) -> BoundModel:
    """Bind one learner state to the functions of `model`."""
    bound: dict[str, Any] = {
        name: None if (f := getattr(model, name)) is None else functools.partial(f, state)
        for name in ("observe", "observe_sequence", "imagine", "predict", "features", "decode")
    }
    return BoundModel(initial_latent=model.initial_latent, latent_at=model.latent_at, **bound)


# ------------------------------------------------------------------------------------- behaviours


class Act(Protocol):
    """Choose one action in one environment."""

    def __call__(
        self,
        state: LearnerState,
        key: Key,
        carry: PyTree,
        latent: PyTree,
        model: BoundModel,
        *,
        explore: bool,
    ) -> tuple[PyTree, PyTree]:
        """(carry, action); `explore`: as for collecting, else as for being judged."""


class BehaviourUpdate(Protocol):
    """One update of a behaviour."""

    def __call__(
        self,
        state: LearnerState,
        key: Key,
        model: BoundModel,
        starts: Starts,
        batch: PyTree,
        iteration: Array,
    ) -> tuple[LearnerState, Metrics]:
        """`batch`: what `learns_from` says: windows [B, L+1], or transitions [U, B]."""


class NamedBehaviourUpdate(Protocol):
    """A further update of a behaviour: "clone", …."""

    def __call__(
        self, state: LearnerState, key: Key, model: BoundModel, batch: Trajectory
    ) -> tuple[LearnerState, Metrics]:
        """(state, Metrics) after one step on windows [B, L+1] of the stream "model"."""


class RepresentationLoss(Protocol):
    """What trains the representation beside the world model's own loss."""

    def __call__(
        self,
        params: PyTree,
        stats: PyTree,
        key: Key,
        model: BoundModel,
        entries: PyTree,
        batch: Trajectory,
    ) -> tuple[Array, tuple[PyTree, Metrics]]:
        """(loss [], (stats, Metrics)); `entries` [B] and the bound model are differentiable."""


class Behaviour(NamedTuple):
    """How to act, and how to get better at it with a world model."""

    init: Callable[[Key, Array], LearnerState]  # (key, features [F]: an example)
    initial_carry: Callable[[], PyTree]  # a warm-started plan, …; () for actors
    act: Act
    update: BehaviourUpdate | None = None  # None: `representation_loss` is all that trains it
    # what an update reads: "starts" to imagine from, "transitions" that a replay samples, or the
    # model's differentiable "entries" (`representation_loss`, with agent=joint)
    learns_from: Literal["starts", "transitions", "entries"] = "starts"
    representation_loss: RepresentationLoss | None = None
    apply: Apply | None = None  # with representation_loss
    updates: Mapping[str, NamedBehaviourUpdate] = NOTHING
    dream: Act | None = None  # as `act`, inside branched rollouts; None: `act(explore=True)`
    reobserves: bool = False  # sees stored observations as first rows: the model must be `markov`


class AgentUpdate(Protocol):
    """One update of an agent."""

    def __call__(
        self, state: AgentState, key: Key, replay: ReplayState, iteration: Array
    ) -> tuple[AgentState, PyTree, Metrics]:
        """(state, the replay's counters, Metrics); a seed that is not finite freezes."""


class Agent(NamedTuple):
    """World model and behaviour as one thing that acts and updates."""

    init: Callable[[Key], AgentState]
    initial_carry: Callable[[], AgentCarry]
    act: Callable  # (state, key, carry, timestep, *, explore) -> (AgentCarry, action)
    # by name: "all", "model", "behaviour", and those of the parts; see `loops.phases.Due`
    updates: Mapping[str, AgentUpdate]

    @property
    def update(self) -> AgentUpdate:
        """The update of everything, "all"."""
        return self.updates["all"]


# ----------------------------------------------------------------------------------------- replay


class Windows(NamedTuple):
    """Windows that an agent draws from one stream of a replay."""

    num: int
    length: int  # rows of each


class RowStore(NamedTuple):
    """Where a replay keeps rows in the order in which they came, one an iteration that collects.

    A checkpoint then takes only the rows that are new since the one before.
    """

    get: Callable  # (ReplayState) -> rows [C, …]; row i lies in slot i mod C
    put: Callable  # (ReplayState, rows or None) -> ReplayState with those instead
    capacity: int  # C


def _as_it_is(state: ReplayState) -> ReplayState:
    return state


class Replay(NamedTuple):
    """Storage of any pytree, and samplers over it."""

    init: Callable[[Step], ReplayState]  # (example row of one lane)
    add: Callable[[ReplayState, Step], ReplayState]  # (state, rows [N])
    sample: Callable  # (state, key, *, stream) -> (counters, batch, indices)
    write_back: Callable  # (counters, indices, values) -> counters: priorities, latents
    # takes in what updates left pending, in phases that do not collect; `add` calls it itself
    settle: Callable[[ReplayState], ReplayState] = _as_it_is
    extend: Callable | None = None  # (counters, rows) -> counters: append imagined rows
    rows: RowStore | None = None  # None: every checkpoint takes the whole state


# ----------------------------------------------------------------------------------- environments


class Environment(NamedTuple):
    """A JAX environment in the time convention of `mbrl_jax.envs.spec`; single lane."""

    spec: EnvSpec
    reset: Callable  # (key) -> (EnvState, Timestep with is_first)
    step: Callable  # (state, key, action) -> (EnvState, Timestep)


class HostEnvironment(NamedTuple):
    """Open lanes that step outside of jit (EnvPool, dm_control), in the same convention.

    Arrays are NumPy's, [S, N, …]; what was returned is never written to again.
    """

    # (lanes [S, N] bool, or None: all) -> Timestep: those lanes begin new episodes. It is always
    # called with one argument, `reset(None)` at first.
    reset: Callable
    send: Callable  # (actions [S, N]): begin to step; the caller can work meanwhile
    receive: Callable  # () -> Timestep [S, N] that the actions led to
    close: Callable  # ()
    render: Callable | None = None  # () -> uint8 [S, N, H, W, 3]: pictures of the newest rows


class HostEnvironments(NamedTuple):
    """What a config of host environments makes: their description, and how to open lanes."""

    spec: EnvSpec
    # (lane seeds [S, N]: integers in 0 … 2^31 - 1, *, evaluation: bool) -> HostEnvironment;
    # in evaluation rewards are raw, and nothing but the end of an episode ends it
    open: Callable
    open_rendered: Callable | None = None  # the same, where its lanes `render`
