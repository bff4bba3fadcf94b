"""Wrong shapes at public functions are named where they are given, before anything runs."""

import jax.numpy as jnp
import pytest

from mbrl_jax import distributions, returns
from mbrl_jax.agents import parts
from mbrl_jax.envs.spec import example_row
from mbrl_jax.replay import ring
from mbrl_jax.replay.transitions import transitions
from mbrl_jax.types import ArraySpec, DiscreteSpec, EnvSpec

SPEC = EnvSpec(ArraySpec((2,), "float32"), DiscreteSpec(3))


@pytest.mark.parametrize(
    "call",
    [
        lambda: returns.lambda_return(
            jnp.ones((2, 3)), jnp.ones(3), jnp.ones(3), jnp.ones(()), 0.9
        ),
        lambda: returns.lambda_return(jnp.ones(3), jnp.ones(3), jnp.ones(4), jnp.ones(()), 0.9),
        lambda: returns.survival(jnp.ones(3), jnp.ones(1)),
        lambda: distributions.categorical_kl(jnp.ones((2, 3)), jnp.ones(3)),
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
    ids=["rank", "lengths", "weight", "broadcast", "one row", "no windows", "lanes"],
)
def test_a_wrong_shape_is_named(call):
    with pytest.raises(AssertionError, match="shape|rank"):
        call()
