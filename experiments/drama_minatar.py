"""Drama at a small size on MinAtar (gymnax), Breakout by default.

    python -m launch.train --experiment=drama_minatar --set=env.name=Breakout-MinAtar \\
        --num_seeds=2 --steps=30000 --workdir=runs/breakout

Expect for Breakout (random play: 0.4) 5 at 20,000 steps, while a tenth of the actions is random,
11 to 19 at 100,000, and greedily 14 to 29. For Space Invaders, which wants less entropy,

    --set=env.name=SpaceInvaders-MinAtar --set=behaviour.entropy=1e-3 --set=agent.num_starts=32

expect 30 to 55 at 100,000, greedily 41 to 77. An update costs about 100 CPU-ms (70 with 32 starts),
so a seed of 100,000 steps 40 to 60 minutes of a core; on an H200 five seeds take three minutes.

What matters here (measured; experiments/results/tuning): a horizon of 24, which spans from the
paddle's hit over the next one to a brick (with 12 a policy stayed at 9), and random actions, for
the model is good only where the policy has been.

Other games: Asterix-MinAtar, Freeway-MinAtar, SpaceInvaders-MinAtar, Seaquest-MinAtar.
"""

import dataclasses

from experiments import drama_catch
from mbrl_jax.agents import apart
from mbrl_jax.behaviours import ppo
from mbrl_jax.envs import gymnax
from mbrl_jax.experiment.experiment import Experiment
from mbrl_jax.loops.phases import Phase
from mbrl_jax.networks import decoders, encoders
from mbrl_jax.replay import samplers


def get_experiment() -> Experiment:
    """The experiment."""
    base = drama_catch.get_experiment()
    model = dataclasses.replace(
        base.model,
        core=dataclasses.replace(base.model.core, width=96),
        encoder=encoders.Dense(width=256),
        decoder=decoders.Dense(width=256),
        groups=32,
        head_layers=2,
        head_width=128,
        unimix=0.005,
        optimiser=drama_catch.adam(2e-3, 1000.0),
    )
    behaviour = ppo.Config(
        horizon=24,
        actor_width=128,
        critic_width=128,
        layers=2,
        num_bins=63,
        output_gain=0.0,
        entropy=1e-2,
        epochs=1,
        num_minibatches=4,
        optimiser=drama_catch.adam(5e-4, 100.0),
    )
    return dataclasses.replace(
        base,
        name="drama_minatar",
        env=gymnax.Config("Breakout-MinAtar"),
        model=model,
        behaviour=behaviour,
        replay=dataclasses.replace(
            base.replay, capacity=100_000, sampler=samplers.DynamicFrequency()
        ),
        agent=apart.Config(num_starts=64),
        phases=(
            Phase(2_000, learn=False),
            Phase(28_000, learn_every=4, random_share=0.1),
            Phase(70_000, learn_every=4, random_share=0.02),
        ),
        log_every=500,
        checkpoint_every=2_000,
        open_loop_context=4,
    )
