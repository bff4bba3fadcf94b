"""The cases of systems that learn a world model from replayed windows, and behave by imagining.

What a file about their authors has to offer, as functions of its module, is what `Theirs` lists;
our side is `ours`. Nothing here needs the authors' code, or PyTorch.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from experiments.studies.authors import ours, problem
from experiments.studies.authors.problem import FILLED, PUBLISHED, Arrays, Sizes
from experiments.studies.authors.table import Case, Side

# Not the published optimiser, whose warm-up hides it.
ROUNDED = "1 - 0.999^k of the first updates has only five digits in float32"
LEARNERS = {"actor_critic": "AC", "ppo": "PPO"}
SEEDS = 3  # of initial weights, on each side
QUANTILES = np.linspace(0.05, 0.95, 10)


class Theirs(Protocol):
    """The authors' side."""

    def precision(self, wide: bool) -> contextlib.AbstractContextManager:
        """Within it everything below is in float64, or in float32."""

    def shapes(self, one: ours.Setup, part: str) -> Mapping[str, tuple[int, ...]]:
        """Of the tensors of a "world model" or "behaviour", by name."""

    def forward(self, one: ours.Setup, arrays: Arrays, key: Any, rows: problem.Windows) -> Side:
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


def _in_precision(theirs: Theirs, name: str, *args: Any, **options: Any) -> Callable:
    """One of their functions, as a function of whether to run in float64."""

    def run(wide: bool) -> Side:
        with theirs.precision(wide):
            return getattr(theirs, name)(*args, **options)

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


def _world_model_cases(theirs: Theirs, one: ours.Setup) -> Iterator[Case]:
    arrays = problem.weights(theirs.shapes(one, "world model"), seed=1)
    if one.sizes == PUBLISHED:
        one = ours.loaded(one, arrays)
    keys, batches = problem.window_problem(one.sizes)
    given = (keys[0], batches[0])
    state = ours.world_state(one, arrays)
    yield Case(
        f"{one.backbone}, nets",
        _in_precision(theirs, "forward", one, arrays, *given),
        functools.partial(ours.forward, one, state, *given),
    )
    given = (keys, batches)
    yield Case(
        f"{one.backbone}, updates",
        _in_precision(theirs, "world_model_updates", one, arrays, *given),
        functools.partial(ours.world_model_updates, one, state, *given),
    )
    if one.backbone == "Mamba2":
        large = ours.with_large_steps(one)
        state = ours.world_state(large, arrays)
        yield Case(
            f"{one.backbone}, large steps",
            _in_precision(theirs, "world_model_updates", one, arrays, *given, large_steps=True),
            functools.partial(ours.world_model_updates, large, state, *given),
            declared=ROUNDED,
        )


# --------------------------------------------------------------------------------------- behaviour


def _behaviour_case(theirs: Theirs, one: ours.Setup, word: str) -> Case:
    world = problem.weights(theirs.shapes(one, "world model"), seed=1)
    arrays = problem.weights(theirs.shapes(one, "behaviour"), seed=2)
    seen = problem.normaliser_state(one.sizes, word)
    given = problem.context_problem(one.sizes)

    def our_side() -> Side:
        state = ours.behaviour_state(one, arrays, seen)
        return ours.behaviour_updates(one, ours.world_state(one, world), state, *given)

    their_side = _in_precision(theirs, "behaviour_updates", one, world, arrays, seen, *given)
    return Case(f"{one.backbone}, {LEARNERS[one.learner]}, {word}", their_side, our_side)


# ------------------------------------------------------------------------------- replay, beginnings


def _sampling_cases(theirs: Theirs) -> Iterator[Case]:
    for stream, num, length in (("model", 16, 128), ("imagine", 1_024, 8)):
        given = (problem.replay_counts(), FILLED, stream)
        their_side = _in_precision(theirs, "sampling", *given, num, length)
        yield Case("replay", their_side, functools.partial(ours.sampling, *given, length))


def _initial_cases(theirs: Theirs, one: ours.Setup, part: str) -> Iterator[Case]:
    """Other seeds of the authors' own are the noise of random weights."""

    def their_side(wide: bool) -> Side:
        seeds = range(SEEDS) if wide else range(SEEDS, 2 * SEEDS)
        found = [theirs.initial(one, part, seed) for seed in seeds]
        return _distributions([ours.params_of(one, part, arrays) for arrays in found])

    def our_side() -> Side:
        return _distributions([ours.initial(one, part, seed) for seed in range(SEEDS)])

    name = f"{one.backbone if part == 'world model' else LEARNERS[one.learner]}, fresh"
    yield Case(name, lambda wide: _counts(theirs.shapes(one, part)), lambda: ours.counts(one, part))
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


def _counts(shapes: Mapping[str, tuple[int, ...]]) -> Side:
    """How many numbers are learned, of a whole world model or of actor and critic."""
    found: dict[str, int] = {}
    for name, shape in shapes.items():
        net = name.partition(".")[0]
        net = net if net in ("actor", "critic", "slow_critic") else "world model"
        if ".running_" not in name:
            found[net] = found.get(net, 0) + int(np.prod(shape))
    found.pop("slow_critic", None)
    return {f"counts of parameters/{net}": np.asarray(n) for net, n in found.items()}


def golden_cases(theirs: Theirs) -> Iterator[Case]:
    """The same at small sizes, for `golden`."""
    return cases(theirs, problem.SMALL)
