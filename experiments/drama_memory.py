"""Drama at a small size has to remember one bit (bsuite MemoryChain, a chain of ten).

    python -m launch.train --experiment=drama_memory --num_seeds=3 --workdir=runs/memory

The first two rows show a bit; the last action has to repeat it: 1 if right, -1 if not, and nothing
else counts. Whoever forgets has 0 in the mean, as --set=model.core=memoryless does. Actions are
random until step 10,000. Expect 1 from then on, greedily too, on two of three seeds (--seed=100),
and about 0 on one whose model knows the bit and whose policy does not use it yet; five minutes for
3 seeds on one CPU core beside other work.

For a chain of N: --set=env.params=[memory_length=N] and --set=replay.length=2N+4, so that every
window holds a whole episode. Of thirty the model learned the bit in one of two tries, of a hundred
in none yet (experiments/results/tuning).

What matters here (measured): fine bins for the reward, and a wide head that does not begin at zero.
Mamba-2 begins with slow decays and large steps for longer chains; ten is learned without that too.
"""

import dataclasses

from experiments import drama_catch
from mbrl_jax import agent
from mbrl_jax.cores import mamba2
from mbrl_jax.envs import gymnax
from mbrl_jax.networks import decoders, encoders
from mbrl_jax.replay import ring
from mbrl_jax.train.experiment import Experiment
from mbrl_jax.train.loop import Phase


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
        num_bins=255,
        zero_reward_output=False,
        reconstruction="squared",
        dynamics_scale=0.2,
        representation_scale=0.02,
        optimiser=drama_catch.adam(2e-3, 1000.0),
    )
    behaviour = dataclasses.replace(
        base.behaviour,
        horizon=4,
        actor_width=32,
        critic_width=32,
        num_bins=31,
        entropy=1e-2,
        optimiser=drama_catch.adam(2e-3, 1000.0),
    )
    return dataclasses.replace(
        base,
        name="drama_memory",
        env=gymnax.Config("MemoryChain-bsuite", params=("memory_length=10",)),
        model=model,
        behaviour=behaviour,
        replay=ring.Config(capacity=10_000, batch_size=16, length=24),
        agent=agent.Config(num_starts=128),
        phases=(
            Phase(100, learn=False, random_share=1.0),
            Phase(2_400, random_share=1.0),
            Phase(600),
        ),
        num_envs=4,
    )
