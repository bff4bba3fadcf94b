"""Drama at a small size has to remember one bit (bsuite MemoryChain, by default for 10 steps).

    python -m launch.train --experiment=drama_memory --num_seeds=4 --workdir=runs/memory

The first two rows show a bit; the last action, 10 steps later, has to repeat it: 1 if right, -1 if
not, and nothing else counts. Whoever forgets has 0 in the mean.

For N steps: --set=env.params=[memory_length=N] and --set=replay.length=2N+4, so that every window
holds a whole episode; --set=replay.batch_size makes up for longer windows. Other cores:
--set=model.core=gru, mamba, memoryless, …
"""

import dataclasses

from experiments import drama_catch
from mbrl_jax.envs import gymnax
from mbrl_jax.replay import ring
from mbrl_jax.train.experiment import Experiment
from mbrl_jax.train.loop import Phase


def get_experiment() -> Experiment:
    """The experiment."""
    base = drama_catch.get_experiment()
    return dataclasses.replace(
        base,
        name="drama_memory",
        env=gymnax.Config("MemoryChain-bsuite", params=("memory_length=10",)),
        model=dataclasses.replace(base.model, reconstruction="squared"),
        behaviour=dataclasses.replace(base.behaviour, entropy=1e-2),
        replay=ring.Config(capacity=20_000, batch_size=16, length=24),
        phases=(Phase(1_000, learn=False, random_share=1.0), Phase(4_000, learn_every=2)),
        checkpoint_every=1_000,
    )
