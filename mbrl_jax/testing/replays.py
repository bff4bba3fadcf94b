"""Laws of samplers and, as L12, of replays."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.replay.samplers import Ring


def check_sampler(
    config: Any, capacity: int = 40, num_envs: int = 2, seed: int = 0, *, covers: bool = True
) -> None:
    """Windows are complete, lie in written rows, never cross the write head, and all are reached.

    Args:
      config: has `make() -> Sampler` and `least_rows(length, num, num_envs)`.
      capacity: C of the made-up ring.
      num_envs: N.
      seed: of the draws.
      covers: False for samplers that leave windows out on purpose, such as those of the newest
        rows: then only the newest complete window of each lane has to be reached.
    """
    sampler = config.make()
    length, num = 5, 6

    @jax.jit
    def sample(counters, key, position):
        ring = Ring(capacity, num_envs, position)
        return sampler.sample(counters, key, ring, length, num, "model")

    least = config.least_rows(length, num, num_envs)
    for position in (least, capacity - 1, capacity, 2 * capacity + 7):
        counters = sampler.init(capacity, num_envs)
        written = np.arange(max(0, position - capacity), position)
        legal = {
            (row % capacity, n)
            for row in written[: len(written) - length + 1]
            for n in range(num_envs)
        }
        seen: set[tuple[int, int]] = set()
        for draw in range(80):
            key = jax.random.fold_in(jax.random.key(seed), draw)
            counters, slot, lane = sample(counters, key, jnp.int32(position))
            drawn = set(zip(np.asarray(slot).tolist(), np.asarray(lane).tolist(), strict=True))
            assert drawn <= legal, f"position {position}: {sorted(drawn - legal)} is no window"
            seen |= drawn
        if covers:
            few = f"position {position}: some windows are never drawn"
            assert len(seen) > 0.9 * len(legal), few
        else:
            newest = {((written[-1] - length + 1) % capacity, n) for n in range(num_envs)}
            assert newest <= seen, f"position {position}: the newest windows are never drawn"
