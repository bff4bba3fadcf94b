"""Rows of tasks, played in one program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np


@functools.partial(jax.jit, static_argnames=("config", "steps", "lanes"))
def _play(config, steps, lanes, key):
    env = config.make()

    def lane(key):
        actions = jax.random.randint(
            jax.random.fold_in(key, 1), (steps,), 0, env.spec.action.num_actions
        )
        start = env.reset(key)

        def body(state, row):
            after, timestep = env.step(state, *row)
            return after, (after, timestep)

        rest = jax.lax.scan(body, start[0], (jax.random.split(key, steps), actions))[1]
        return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), start, rest), actions

    return jax.vmap(lane)(jax.random.split(key, lanes))


def play(config, steps, lanes, seed=0):
    """Random play: states and timesteps [lanes, steps + 1], actions [lanes, steps]."""
    (states, rows), actions = _play(config, steps, lanes, jax.random.key(seed))
    return jax.tree.map(np.asarray, (states, rows, actions))
