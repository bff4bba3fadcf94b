"""Drama at a small size has to remember one bit (bsuite MemoryChain, a chain of ten).

    python -m launch.train --experiment=drama_memory --num_seeds=3 --workdir=runs/memory

The first two rows show a bit; the last action has to repeat it: 1 if right, -1 if not, and nothing
else counts. Whoever forgets has 0 in the mean. Actions are random but in the last 600 rows of each
environment, so returns are about 0 until then. Expect 0.8 to 1 from then on, and 1 greedily (1.0 on
the four seeds of --seed=100); five minutes for 3 seeds on one CPU core.

A chain of a hundred (0.92 to 1 on the three seeds of --seed=10 with sampled actions; greedily two
of them fail, experiments/results says more): enough rows before learning begins, windows of 2N + 4
rows, so that each holds a whole episode, and so many starts that some lie near its end:

    --set=env.params=[memory_length=100] --set=replay.length=204 --set=replay.capacity=40000 \\
    --set=phases.0.iterations=5000 --set=phases.1.iterations=5500 --set=phases.2.iterations=500 \\
    --set=agent.num_starts=1024

What matters here (measured; experiments/results/tuning): bins of which one lies where the symlog of
±1 does (59 of them), a reward head that begins near zero but not at it, a large scale of its loss,
which is one row's of an episode, and gradients clipped at a norm of 1: with the published 1,000,
seeds learn later or not at all, and some lose again what they have learned.
"""

import dataclasses

from experiments import drama_catch
from mbrl_jax.agents import apart
from mbrl_jax.cores import mamba2
from mbrl_jax.envs import gymnax
from mbrl_jax.experiment.experiment import Experiment
from mbrl_jax.loops.phases import Phase
from mbrl_jax.networks import decoders, encoders
from mbrl_jax.replay import ring


def get_experiment() -> Experiment:
    """The experiment."""
    base = drama_catch.get_experiment()
    model = dataclasses.replace(
        base.model,
        core=mamba2.Config(
            width=32,
            layers=1,
            head_size=8,
            chunk_size=8,
            decay_range=(1e-3, 0.1),
            step_range=(0.1, 1.0),
        ),
        encoder=encoders.Dense(width=64),
        decoder=decoders.Dense(width=64),
        groups=4,
        classes=4,
        head_width=128,
        num_bins=59,
        zero_reward_output=False,
        reward_gain=0.01,
        reconstruction="squared",
        dynamics_scale=0.05,
        representation_scale=0.005,
        reward_scale=30.0,
        optimiser=drama_catch.adam(2e-3, 1.0),
    )
    behaviour = dataclasses.replace(
        base.behaviour,
        horizon=4,
        actor_width=32,
        critic_width=32,
        num_bins=59,
        entropy=3e-2,
        optimiser=drama_catch.adam(2e-3, 1000.0),
    )
    return dataclasses.replace(
        base,
        name="drama_memory",
        env=gymnax.Config("MemoryChain-bsuite", params=("memory_length=10",)),
        model=model,
        behaviour=behaviour,
        replay=ring.Config(capacity=10_000, batch_size=32, length=24),
        agent=apart.Config(num_starts=256),
        phases=(
            Phase(100, learn=False, random_share=1.0),
            Phase(2_400, random_share=1.0),
            Phase(600),
        ),
        num_envs=4,
    )
