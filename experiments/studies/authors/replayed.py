"""The cases of systems that learn a world model from replayed windows, and behave by imagining.

What a file about their authors has to offer, as functions of its module, is what `Theirs` lists;
our side is `ours`.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from experiments.studies.authors import ours, problem
from experiments.studies.authors import recorded as rec
from experiments.studies.authors.problem import Arrays, Sizes, Windows
from experiments.studies.authors.stand_ins import precision
from experiments.studies.authors.table import Case, Side
from mbrl_jax.networks import running

PUBLISHED = Sizes()
UPDATES = 3
LEARNERS = {"actor_critic": "AC", "ppo": "PPO"}
SEEDS = 3  # of initial weights, on each side
QUANTILES = np.linspace(0.05, 0.95, 10)
CAPACITY, FILLED = 3_000, 2_500  # of the replay whose sampling frequencies are compared


class Theirs(Protocol):
    """The authors' side."""

    def world_model(self, one: ours.Setup) -> Any:
        """A module with fresh weights."""

    def agent(self, one: ours.Setup) -> Any:
        """The same of the behaviour."""

    def forward(self, one: ours.Setup, arrays: Arrays, key: Any, rows: Windows) -> Side:
        """As `ours.forward`."""

    def world_model_updates(
        self, one: ours.Setup, arrays: Arrays, keys: Sequence, batches: Sequence, **options: bool
    ) -> Side:
        """As `ours.world_model_updates`."""

    def behaviour_updates(
        self,
        one: ours.Setup,
        world: Arrays,
        arrays: Arrays,
        normaliser: Sequence[np.ndarray],
        keys: Sequence,
        contexts: Sequence,
    ) -> Side:
        """As `ours.behaviour_updates`."""

    def sampling(
        self, counts: Sequence[np.ndarray], filled: int, stream: str, num: int, length: int
    ) -> Side:
        """Probabilities of starts."""

    def initial(self, one: ours.Setup, part: str, seed: int) -> Arrays:
        """The state dict of a fresh "world model" or "behaviour"."""

    def num_parameters(self, one: ours.Setup) -> Side:
        """How many numbers are learned."""


def _in_precision(function: Callable[..., Side], *args: Any, **options: Any) -> Callable:
    """A function of whether to run in float64."""

    def run(wide: bool) -> Side:
        with precision(wide):
            return function(*args, **options)

    return run


def cases(theirs: Theirs, sizes: Sizes = PUBLISHED) -> Iterator[Case]:
    """All of them; what they share is made when it is asked for."""
    for backbone in ours.CORES:
        yield from _world_model_cases(theirs, ours.setup(backbone, sizes))
    for backbone, learner, normaliser in (
        *(("Mamba2", "actor_critic", word) for word in ("warm", "empty")),
        *(("Mamba2", "ppo", word) for word in ("warm", "empty")),
        *(("Mamba", "actor_critic", "warm"), ("Mamba", "ppo", "warm")),
        ("Transformer", "actor_critic", "warm"),
    ):
        yield _behaviour_case(theirs, ours.setup(backbone, sizes, learner), normaliser)
    yield from _sampling_cases(theirs)
    for backbone in ours.CORES:
        yield from _initial_cases(theirs, ours.setup(backbone, sizes), "world model")
    for learner in LEARNERS:
        yield from _initial_cases(theirs, ours.setup("Mamba2", sizes, learner), "behaviour")


# ------------------------------------------------------------------------------------- world model


def world_arrays(theirs: Theirs, one: ours.Setup) -> Arrays:
    """The weights of the world model on both sides."""
    return problem.weights(rec.shapes_of(theirs.world_model(one)), seed=1)


def _world_model_cases(theirs: Theirs, one: ours.Setup) -> Iterator[Case]:
    arrays = world_arrays(theirs, one)
    if one.sizes == PUBLISHED:
        one = ours.loaded(one, arrays)
    given = window_problem(one.sizes)
    key, rows = given[0][0], given[1][0]
    state = ours.world_state(one, arrays)
    yield Case(
        one.backbone,
        _in_precision(theirs.forward, one, arrays, key, rows),
        functools.partial(ours.forward, one, state, key, rows),
    )
    update = functools.partial(_in_precision, theirs.world_model_updates, one, arrays, *given)
    yield Case(
        one.backbone, update(), functools.partial(ours.world_model_updates, one, state, *given)
    )
    if one.backbone != "Mamba2":
        return
    large = ours.with_large_steps(one)
    yield Case(
        "Mamba2, large steps",
        update(large_steps=True),
        functools.partial(ours.world_model_updates, large, ours.world_state(large, arrays), *given),
    )


def window_problem(sizes: Sizes) -> tuple[list, list[Windows]]:
    """(keys, batches) of the updates of a world model."""
    keys = [jax.random.key(50 + i) for i in range(UPDATES)]
    shape = (sizes.windows, sizes.rows, sizes.actions)
    return keys, [problem.windows(10 + i, *shape) for i in range(UPDATES)]


# --------------------------------------------------------------------------------------- behaviour


def context_problem(sizes: Sizes) -> tuple[list, list[Windows]]:
    """(keys, contexts) of the updates of a behaviour."""
    keys = [jax.random.key(900 + i) for i in range(UPDATES)]
    shape = (sizes.starts, sizes.context, sizes.actions)
    return keys, [problem.windows(200 + i, *shape) for i in range(UPDATES)]


def normaliser_state(sizes: Sizes, word: str) -> running.Running:
    """What the actor's inputs are normalised by: "empty", or "warm" after very many rows."""
    one_hot = sizes.classes**2
    size = one_hot + sizes.width
    if word == "empty":
        return running.Running(*(np.float32(1e-4), np.zeros(size, "f4"), np.ones(size, "f4")))
    rng, is_sample = np.random.default_rng(3), np.arange(size) < one_hot
    mean = rng.normal(0, 0.05, size) + is_sample / sizes.classes
    variance = np.exp(rng.normal(0, 0.3, size)) * np.where(is_sample, 1 / sizes.classes, 1.0)
    return running.Running(np.float32(1e9), np.float32(mean), np.float32(variance))


def _behaviour_case(theirs: Theirs, one: ours.Setup, word: str) -> Case:
    @functools.cache
    def arrays() -> tuple[Arrays, Arrays]:
        return world_arrays(theirs, one), problem.weights(rec.shapes_of(theirs.agent(one)), seed=2)

    seen, given = normaliser_state(one.sizes, word), context_problem(one.sizes)

    def their_side(wide: bool) -> Side:
        with precision(wide):
            return theirs.behaviour_updates(one, *arrays(), seen, *given)

    def our_side() -> Side:
        world, behaviour = arrays()
        state = ours.behaviour_state(one, behaviour, seen)
        return ours.behaviour_updates(one, ours.world_state(one, world), state, *given)

    return Case(f"{one.backbone}, {LEARNERS[one.learner]}, {word}", their_side, our_side)


# ------------------------------------------------------------------------------- replay, beginnings


def replay_counts() -> list[np.ndarray]:
    """[model, imagine] how often each row was drawn."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, most, CAPACITY).astype(np.int32) for most in (60, 5_000)]


def _sampling_cases(theirs: Theirs) -> Iterator[Case]:
    for stream, num, length in (("model", 16, 128), ("imagine", 1_024, 8)):
        counts = replay_counts()
        given = (counts, FILLED, stream)
        their_side = _in_precision(theirs.sampling, *given, num, length)
        yield Case("replay", their_side, functools.partial(ours.sampling, *given, length))


def _initial_cases(theirs: Theirs, one: ours.Setup, part: str) -> Iterator[Case]:
    """Other seeds of the authors' own are the noise of random weights."""

    def their_side(wide: bool) -> Side:
        seeds = range(SEEDS) if wide else range(SEEDS, 2 * SEEDS)
        found = [theirs.initial(one, part, seed) for seed in seeds]
        return _distributions([ours.params_of(one, part, arrays) for arrays in found])

    def our_side() -> Side:
        return _distributions([ours.initial(one, part, seed) for seed in range(SEEDS)])

    name = one.backbone if part == "world model" else LEARNERS[one.learner]
    yield Case(name, lambda wide: theirs.num_parameters(one), lambda: ours.num_parameters(one))
    yield Case(name, their_side, our_side)


def _distributions(seeds: list[Arrays]) -> Side:
    """Quantiles of each tensor over all seeds, and tensors that begin as a constant."""
    quantiles, constants = {}, {}
    for name in seeds[0]:
        values = np.concatenate([np.ravel(seed[name]) for seed in seeds])
        quantiles[name] = np.quantile(values, QUANTILES)
        if np.ptp(values) == 0:
            constants[name] = quantiles.pop(name)
    return {"initial weights/quantiles": quantiles, "initial weights/constants": constants}
