"""Wrong shapes at public functions are named where they are given, before anything runs."""

import jax
import jax.numpy as jnp
import pytest

from mbrl_jax import distributions, imagination, masks, returns
from mbrl_jax.agents import parts
from mbrl_jax.behaviours import sac
from mbrl_jax.envs.spec import action_vector, example_row
from mbrl_jax.replay import dyna, ring
from mbrl_jax.replay.transitions import transitions
from mbrl_jax.testing import random_transitions
from mbrl_jax.types import ArraySpec, BoundedSpec, DiscreteSpec, EnvSpec, MultiDiscreteSpec

SPEC = EnvSpec(ArraySpec((2,), "float32"), DiscreteSpec(3))
PUSHES = EnvSpec(ArraySpec((2,), "float32"), BoundedSpec(1))


def _extend(num_rows):
    """Imagined rows for a buffer that takes six at once."""
    config = dyna.Config(12, rows_per_update=6, batch_size=4, num_batches=2, real_fraction=0.0)
    replay = config.make(ring.Config(capacity=9, length=2).make(2), SPEC)
    rows = random_transitions(SPEC, jax.random.key(0), (2, num_rows // 2))
    return replay.extend(replay.init(example_row(SPEC)).counters, rows)


def _learn(lead):
    """Soft actor-critic on one batch of transitions, without the axis of gradient steps."""
    rows = random_transitions(PUSHES, jax.random.key(0), (1, 4))
    rows = jax.tree.map(lambda x: x.reshape(lead + x.shape[2:]), rows)
    return sac.Config().make(PUSHES).update(None, jax.random.key(0), None, None, rows, 0)


KEYS = jax.random.split(jax.random.key(0), 2)


@pytest.mark.parametrize(
    "call",
    [
        lambda: returns.lambda_return(
            jnp.ones((2, 3)), jnp.ones(3), jnp.ones(3), jnp.ones(()), 0.9
        ),
        lambda: returns.lambda_return(jnp.ones(3), jnp.ones(3), jnp.ones(4), jnp.ones(()), 0.9),
        lambda: returns.survival(jnp.ones(3), jnp.ones(1)),
        lambda: distributions.categorical_kl(jnp.ones((2, 3)), jnp.ones(3)),
        lambda: distributions.two_hot_loss(jnp.ones((2, 9)), jnp.ones((2, 1))),
        lambda: distributions.bernoulli_nll(jnp.ones((2, 1)), jnp.ones(2)),
        lambda: masks.masked_mean(jnp.ones((2, 1)), jnp.ones(2, bool)),
        lambda: masks.masked_mean(jnp.ones(2), jnp.ones(2)),
        lambda: imagination.imagine_rollout(None, None, KEYS, (), 3),
        lambda: imagination.follow_actions(None, KEYS, (), jnp.zeros(2, int), None),
        lambda: action_vector(DiscreteSpec(2), jnp.zeros(3)),
        lambda: action_vector(MultiDiscreteSpec((2, 2)), jnp.zeros(3, int)),
        lambda: action_vector(BoundedSpec(2), jnp.zeros(3)),
        lambda: _extend(8),
        lambda: _learn((4,)),
        lambda: transitions(example_row(SPEC)),
        lambda: parts.draw_starts(None, None, None, example_row(SPEC), 2),
        lambda: (
            ring.Config(capacity=9, length=2)
            .make(2)
            .add(
                ring.Config(capacity=9, length=2).make(2).init(example_row(SPEC)), example_row(SPEC)
            )
        ),
    ],
    ids=[
        *(
            "rank",
            "lengths",
            "weight",
            "broadcast",
            "targets",
            "elementwise",
            "mask",
            "mask's type",
        ),
        *("keys of several starts", "keys", "action's type", "choices", "action's size"),
        *("imagined rows", "no gradient steps", "one row", "no windows", "lanes"),
    ],
)
def test_a_wrong_shape_is_named(call):
    with pytest.raises(AssertionError, match="shape|rank|type|size|dimension"):
        call()


def test_right_shapes_pass():
    logits, target = jnp.ones((3, 2, 9)), jnp.ones(2)  # three critics, one target
    assert distributions.two_hot_loss(logits, target).shape == (3, 2)
    assert _extend(6).is_pending
