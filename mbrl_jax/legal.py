"""Which actions are allowed: the leaf "action_mask" of an observation, and of a prediction.

A mask [A] is bool: whether each option is allowed. Of several discrete choices the masks stand one
behind the other, as the one-hot vectors do in `envs.spec.action_vector`; what one of them allows
does not depend on the others. So do those of a dictionary's parts, in the order of their names;
real-valued parts have none. A row that ends an episode may allow nothing: its action is ignored.

The environment says the mask with each row, and a world model that learned it says in
`Prediction.extras` how probable it is. Acting, an agent puts the former in the place of the latter
(`told`), so that a behaviour reads both in one way (`expected`).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.types import (
    ActionSpec,
    Array,
    ArraySpec,
    BoundModel,
    DictActionSpec,
    DictSpec,
    DiscreteSpec,
    EnvSpec,
    HostEnvironment,
    HostEnvironments,
    Key,
    Metrics,
    MultiDiscreteSpec,
    OneActionSpec,
    Prediction,
    PyTree,
    Timestep,
)

NAME = "action_mask"
FORBIDDEN = -1e9  # a logit: finite, so that no product with a probability of 0 is NaN


def is_masked(spec: EnvSpec) -> bool:
    """Whether the environment says which actions are allowed."""
    return isinstance(spec.observation, DictSpec) and NAME in dict(spec.observation.leaves)


def _sizes(spec: ActionSpec) -> tuple[int, ...]:
    """Options of each choice; () for real-valued actions."""
    if isinstance(spec, DictActionSpec):
        return tuple(size for _, leaf in spec.leaves for size in _sizes(leaf))
    if isinstance(spec, MultiDiscreteSpec):
        return spec.num_actions
    return (spec.num_actions,) if isinstance(spec, DiscreteSpec) else ()


def require_mask(spec: EnvSpec) -> None:
    """Raise ValueError for a mask that does not fit the actions."""
    if not is_masked(spec):
        return
    assert isinstance(spec.observation, DictSpec)
    found, sizes = dict(spec.observation.leaves)[NAME], _sizes(spec.action)
    if not sizes:
        raise ValueError(
            f"a leaf {NAME!r} is for discrete actions, and here are {spec.action}: give it another "
            "name, or write all choices as one MultiDiscreteSpec"
        )
    if found != ArraySpec((sum(sizes),), "bool"):
        raise ValueError(
            f"the observation's leaf {NAME!r} is {found.dtype}{list(found.shape)}, and for "
            f"{spec.action} it has to be bool[{sum(sizes)}]: one value for each option of its "
            "discrete choices"
        )


def of(timestep: Timestep) -> Array | None:
    """The mask [..., A] that the environment says, bool; None where all actions are allowed."""
    return mask_in(timestep.observation)


def mask_in(observation: PyTree) -> Array | None:
    """The same of an observation [..., *leaf]."""
    is_told = isinstance(observation, dict) and NAME in observation
    return observation[NAME] if is_told else None


def split(spec: ActionSpec, x: Array) -> list[Array]:
    """[..., A] as [..., Aᵢ] of each choice."""
    xp, ends = x.__array_namespace__(), np.cumsum(_sizes(spec))[:-1]
    return xp.split(x, ends.tolist(), axis=-1)


def of_parts(spec: ActionSpec, mask: Any) -> list[Any]:
    """The mask [..., Aᵢ] of each part of a dictionary, or of the one action; None for no mask.

    Args:
      spec: of the actions.
      mask: [..., A] or None, which allows everything.
    """
    leaves = [leaf for _, leaf in spec.leaves] if isinstance(spec, DictActionSpec) else [spec]
    if mask is None:
        return [None] * len(leaves)
    sizes = [sum(_sizes(leaf)) for leaf in leaves]
    pieces = mask.__array_namespace__().split(mask, np.cumsum(sizes)[:-1].tolist(), axis=-1)
    return [piece if size else None for piece, size in zip(pieces, sizes, strict=True)]


def restrict(logits: Array, mask: Array | None) -> Array:
    """Logits [..., A] under which only what the mask allows is probable; None changes nothing."""
    return logits if mask is None else jnp.where(mask, logits, FORBIDDEN)


def uniform(spec: OneActionSpec, key: Key, mask: Array) -> Array:
    """A uniform one among the allowed actions; of a row that allows nothing, any."""
    pieces = split(spec, restrict(jnp.zeros(mask.shape), mask))
    if isinstance(spec, DiscreteSpec):
        return jax.random.categorical(key, pieces[0]).astype(jnp.int32)
    keys = jax.random.split(key, len(pieces))
    drawn = [jax.random.categorical(*one) for one in zip(keys, pieces, strict=True)]
    return jnp.stack(drawn).astype(jnp.int32)


def draw(spec: OneActionSpec, rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """The same for masks [..., A] of NumPy's: actions [...]."""
    pieces: Any = split(spec, (1.0 - rng.random(mask.shape)) * mask)
    found = [np.argmax(piece, axis=-1).astype(np.int32) for piece in pieces]
    return found[0] if isinstance(spec, DiscreteSpec) else np.stack(found, axis=-1)


# ----------------------------------------------------------------------------------- in the agent


def told(model: BoundModel, timestep: Timestep) -> BoundModel:
    """The model, whose predictions say of actions what the environment says with this row."""
    mask = of(timestep)
    if mask is None:
        return model

    def predict(latent: PyTree) -> Prediction:
        prediction = model.predict(latent)
        extras = prediction.extras | {NAME: mask.astype(jnp.float32)}
        return prediction._replace(extras=extras)

    return model._replace(predict=predict)


def reader(spec: EnvSpec) -> Callable[[Prediction], Array] | None:
    """`expected` for an environment; None where it does not say what is allowed."""
    require_mask(spec)
    return functools.partial(expected, spec.action) if is_masked(spec) else None


def expected(spec: ActionSpec, prediction: Prediction) -> Array:
    """The mask [..., A] bool of predictions [...]: what is allowed with more than one half.

    The most probable option of each choice always is. Raises ValueError for a model that says
    nothing of it.
    """
    if NAME not in prediction.extras:
        raise ValueError(
            f"the environment masks actions, and this world model predicts no {NAME}: use "
            "model=drama or model=rssm, with encoder, decoder and reconstruction auto"
        )
    pieces = split(spec, jax.lax.stop_gradient(prediction.extras[NAME]))
    masks = [(p > 0.5) | (p == p.max(axis=-1, keepdims=True)) for p in pieces]
    return jnp.concatenate(masks, axis=-1)


# ------------------------------------------------------------------------- rows that allow nothing


def stuck(spec: EnvSpec, timestep: Timestep) -> Array | None:
    """[...] bool: rows that want an action and allow none; None without a mask."""
    mask = of(timestep)
    if mask is None:
        return None
    some = [piece.any(axis=-1) for piece in split(spec.action, mask)]
    return ~functools.reduce(lambda a, b: a & b, some) & ~timestep.is_last


def arrived(spec: EnvSpec, before: Timestep, after: Timestep) -> Timestep:
    """Row `after`, with NaN for a reward that no allowed action led to.

    Inside of a program nothing can be raised. Whoever learns from NaN is frozen, and says since
    when; an evaluation gives NaN. The metric of `counts` names the cause.
    """
    none = stuck(spec, before)
    if none is None:
        return after
    return after._replace(reward=jnp.where(none, jnp.nan, after.reward))


def counts(spec: EnvSpec, timestep: Timestep) -> Metrics:
    """How many of the rows [N] allow nothing, by name; {} where all actions always are."""
    none = stuck(spec, timestep)
    if none is None:
        return {}
    return {"count/nothing_allowed": (none.sum(dtype=jnp.float32), jnp.ones(()))}


def watched(env: HostEnvironments) -> HostEnvironments:
    """Environments on the host that raise ValueError, with the lane, where no action is allowed."""
    if not is_masked(env.spec):
        return env

    def open_lanes(opened: Callable, lane_seeds: Any, *, evaluation: bool) -> HostEnvironment:
        lanes, rows = opened(lane_seeds, evaluation=evaluation), 0

        def reset(which: Any) -> Timestep:
            return checked(lanes.reset(which))

        def receive() -> Timestep:
            nonlocal rows
            rows += 1
            return checked(lanes.receive())

        def checked(timestep: Timestep) -> Timestep:
            require_some(env.spec, timestep, rows)
            return timestep

        return lanes._replace(reset=reset, receive=receive)

    watching = functools.partial(functools.partial, open_lanes)
    rendered = env.open_rendered and watching(env.open_rendered)
    return env._replace(open=watching(env.open), open_rendered=rendered)


def require_some(spec: EnvSpec, timestep: Timestep, row: int) -> None:
    """Raise ValueError for the first lane of rows [S, N] that wants an action and allows none."""
    none: Any = stuck(spec, timestep)
    if none is not None and none.any():
        seed, lane = np.argwhere(none)[0]
        raise ValueError(
            f"lane {lane} of seed {seed} allows no action in row {row} after it was opened: its "
            f"{NAME} is false everywhere, and its episode is not over"
        )
