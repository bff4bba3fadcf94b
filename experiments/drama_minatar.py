"""Drama at a small size on MinAtar (gymnax), Breakout by default.

    python -m launch.train --experiment=drama_minatar --set=env.name=Breakout-MinAtar \\
        --num_seeds=2 --steps=30000 --workdir=runs/breakout

What matters here (measured; experiments/results/tuning): a horizon that spans from the paddle's hit
over the next one to a brick (24; with 12 the policy stays at 9), and a tenth of the first 30,000
actions at random, because the model is good only where the policy has been. An update costs about
90 CPU-ms: 100,000 steps of a seed take 40 minutes of a core.

Other games: Asterix-MinAtar, Freeway-MinAtar, SpaceInvaders-MinAtar, Seaquest-MinAtar.
"""

import dataclasses

from experiments import drama_catch
from mbrl_jax import agent
from mbrl_jax.behaviours import ppo
from mbrl_jax.envs import gymnax
from mbrl_jax.networks import decoders, encoders
from mbrl_jax.train.experiment import Experiment
from mbrl_jax.train.loop import Phase


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
        entropy=3e-3,
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
        replay=dataclasses.replace(base.replay, capacity=100_000),
        agent=agent.Config(num_starts=64),
        phases=(
            Phase(2_000, learn=False),
            Phase(28_000, learn_every=4, random_share=0.1),
            Phase(70_000, learn_every=4, random_share=0.02),
        ),
        log_every=500,
        checkpoint_every=2_000,
        open_loop_context=4,
    )
