"""A JAX environment in lanes that are stepped from outside of jit, as those of EnvPool are.

For what looks at single rows, such as films; training steps inside of jit.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.keys import at
from mbrl_jax.types import Array, Environment, HostEnvironment, HostEnvironments, Timestep


def on_host(env: Environment) -> HostEnvironments:
    """The same environment, to be opened in lanes; evaluation is not different."""
    return HostEnvironments(env.spec, functools.partial(open_lanes, env))


def open_lanes(env: Environment, lane_seeds: Array, *, evaluation: bool) -> HostEnvironment:
    """Open lanes [S, N], each with the randomness of its own seed."""
    del evaluation
    lanes = _Lanes(env, lane_seeds)
    return HostEnvironment(lanes.reset, lanes.send, lanes.receive, lambda: None)


class _Lanes:
    """States [S, N], and the number of calls that changed them."""

    def __init__(self, env: Environment, lane_seeds: Array):
        keys = _over_lanes(jax.random.key)(jnp.asarray(lane_seeds))
        reset = lambda count: _over_lanes(lambda key: env.reset(at(key, "reset", count)))(keys)  # noqa: E731
        step = lambda count, *args: _over_lanes(  # noqa: E731
            lambda key, state, action: env.step(state, at(key, "env", count), action)
        )(keys, *args)
        self._reset, self._step, self._choose = jax.jit(reset), jax.jit(step), jax.jit(_choose)
        self._count = 0
        self._now: Any = None  # (states, rows)

    def reset(self, lanes: np.ndarray | None = None) -> Timestep:
        """Begin new episodes in `lanes` [S, N] (None: in all)."""
        fresh = self._reset(self._next())
        self._now = fresh if lanes is None else self._choose(lanes, fresh, self._now)
        return self.receive()

    def send(self, actions: np.ndarray) -> None:
        """Begin to step all lanes."""
        self._now = self._step(self._next(), self._now[0], actions)

    def receive(self) -> Timestep:
        """Wait for the rows."""
        return jax.device_get(self._now[1])

    def _next(self) -> int:
        self._count += 1
        return self._count


def _over_lanes(fn):
    return jax.vmap(jax.vmap(fn))


def _choose(lanes, new, old):
    """Of each lane [S, N], all of `new` or all of `old`."""
    one = lambda which, *both: jax.tree.map(lambda a, b: jnp.where(which, a, b), *both)  # noqa: E731
    return _over_lanes(one)(lanes, new, old)
