"""What all planners share: action sequences as vectors, their scores, elites, and the record.

A planner sees sequences [N, H, A] of numbers in [-1, 1] and how well each scores, and nothing else.
`scorer` gives scores by any world model; what stands behind a predicted end counts nothing.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from mbrl_jax import returns
from mbrl_jax.envs.spec import action_of_vector
from mbrl_jax.imagination import follow_actions, imagine_rollout
from mbrl_jax.keys import named
from mbrl_jax.types import ActionSpec, Array, BoundModel, Key, PyTree


class Score(Protocol):
    """How good action sequences are."""

    def __call__(self, key: Key, actions: Array) -> Array:
        """Scores [N] of sequences [N, H, A]: more is better; NaN counts as worst."""


class Plan(NamedTuple):
    """Where planning ended."""

    mean: Array  # [H, A] of the elites, weighted
    std: Array  # [H, A]
    elites: Array  # [K, H, A] best first
    weights: Array  # [K] they sum to 1


class Planner(NamedTuple):
    """How to search for a sequence; functions of one stream, which `vmap` may batch."""

    horizon: int  # H
    num_proposals: int  # P, sequences of a policy that compete, where there is one
    initial: Callable[[], PyTree]  # the memory that an episode begins with
    plan: Callable[[Key, PyTree, Score, Array], Plan]  # (key, memory, score, proposals [P, H, A])
    shifted: Callable[[Key, Plan], PyTree]  # the memory of the next row: an action later
    action: Callable[[Key, Plan], Array]  # [A] that is taken by who judges the plan
    explore: Callable[[Key, Plan], Array]  # [A] that is taken by who collects rows
    differentiates: bool = False  # reads the gradient of scores by actions


def scorer(
    spec: ActionSpec,
    model: BoundModel,
    latent: PyTree,
    gamma: Array | float,
    bootstrap: Callable[[Key, Array], Array] | None = None,
    particles: int = 1,
) -> Score:
    """Scores by imagination from one latent.

      Σ_t γᵗ (Π_{s<t} d_s) rₜ + γᴴ (Π d) V(z_H)

    with dₜ the predicted discounts: nothing behind a predicted end counts.

    Args:
      spec: of the actions, which `action_of_vector` makes of the planner's numbers.
      model: the bound world model.
      latent: to plan from.
      gamma: discount.
      bootstrap: V, (key, features [N, F]) -> [N]; None: 0.
      particles: imagined futures of each sequence, whose returns are averaged.
    """

    def extract(latent):
        return model.predict(latent), model.features(latent)

    def follow(key, sequence):
        actions = jax.vmap(functools.partial(action_of_vector, spec))(sequence)
        return follow_actions(model, key, latent, actions, extract)

    def once(key, actions):
        keys = jax.random.split(named(key, "model"), actions.shape[0])
        prediction, features = jax.vmap(follow)(keys, actions)
        reward, discount = prediction.reward, gamma * prediction.discount
        last = jnp.zeros((actions.shape[0],))
        if bootstrap is not None:
            last = bootstrap(key, features[:, -1])
        total = functools.partial(returns.lambda_return, lambda_=1.0)  # the plain discounted sum
        return jax.vmap(total)(reward, discount, reward, last)[:, 0]

    if particles == 1:
        return once

    def score(key, actions):
        keys = jax.random.split(key, particles)
        return jax.vmap(once, (0, None))(keys, actions).mean(axis=0)

    return score


def proposed(
    planner: Planner, policy: Callable, model: BoundModel, latent: PyTree, key: Key
) -> Array:
    """Sequences [P, H, A] of a policy (key, carry, latent) -> (carry, action [A]) from a latent."""

    def propose(key):
        nothing = lambda _: ()
        act = lambda key, carry, latent: policy(key, carry, latent)
        return imagine_rollout(model, act, key, latent, planner.horizon, nothing)[1]

    return jax.vmap(propose)(jax.random.split(key, planner.num_proposals))


def clean(scores: Array) -> Array:
    """Scores of which NaN is the worst."""
    return jnp.nan_to_num(scores, nan=jnp.finfo(scores.dtype).min)


def best(scores: Array, actions: Array, num: int) -> tuple[Array, Array]:
    """The `num` best of [N] scores, best first, with their sequences [num, H, A]."""
    top, index = jax.lax.top_k(clean(scores), num)
    return top, actions[index]


def moments(weights: Array, elites: Array) -> tuple[Array, Array]:
    """Weighted mean and variance [H, A] of elites [K, H, A]."""
    mean = jnp.einsum("k,kha->ha", weights, elites)
    return mean, jnp.einsum("k,kha->ha", weights, jnp.square(elites - mean))


def later(mean: Array) -> Array:
    """A sequence [H, A] one action later, zeros behind."""
    return jnp.concatenate([mean[1:], jnp.zeros_like(mean[:1])])


def first_of_mean(key: Key, found: Plan) -> Array:
    """The first action [A] of the mean."""
    del key
    return jnp.clip(found.mean[0], -1.0, 1.0)


def first_of_best(key: Key, found: Plan) -> Array:
    """The first action [A] of the best sequence."""
    del key
    return found.elites[0, 0]


def drawn_action(key: Key, found: Plan, noise: float) -> Array:
    """The first action [A] of an elite drawn by its weight, with `noise` deviations added."""
    elite = jax.random.categorical(named(key, "elite"), jnp.log(found.weights))
    first = found.elites[elite, 0]
    extra = noise * found.std[0] * jax.random.normal(named(key, "noise"), first.shape)
    return jnp.clip(first + extra, -1.0, 1.0)


def shifted_mean(key: Key, found: Plan) -> Array:
    """The mean [H, A] one action later."""
    del key
    return later(found.mean)


def from_mean(
    config: Any, size: int, plan: Callable, action: Callable, explore: Callable, **more: bool
) -> Planner:
    """A planner for actions of `size` numbers that remembers the mean [H, A] of its last plan.

    Args:
      config: has `horizon`, `num_proposals` and `validate`, and is what `plan` takes first.
      size: A.
      plan: (config, key, mean, score, proposals) -> Plan.
      action: as in the record.
      explore: as in the record.
      more: fields of the record.
    """
    config.validate()
    return Planner(
        config.horizon,
        config.num_proposals,
        initial=lambda: jnp.zeros((config.horizon, size)),
        plan=functools.partial(plan, config),
        shifted=shifted_mean,
        action=action,
        explore=explore,
        **more,
    )


def require_elites(num_samples: int, num_proposals: int, num_elites: int) -> None:
    """Raise ValueError for numbers of sequences that cannot work together."""
    if not num_proposals < num_samples >= num_elites:
        raise ValueError(
            f"num_samples={num_samples} must exceed num_proposals={num_proposals} "
            f"and reach num_elites={num_elites}"
        )
