"""Drama at a small size on MinAtar (gymnax), Breakout by default.

    python -m launch.train --experiment=drama_minatar --set=env.name=Breakout-MinAtar \\
        --num_seeds=2 --steps=20000 --workdir=runs/breakout

Expect for Breakout (random play: 0.5): 3 to 5 at 7,500 steps, 5.5 to 7 over the last fifth of
20,000, and a little more with greedy actions; 4 to 6 minutes for 2 seeds on 2 CPU cores. It was
not tuned.

With convolutions, at about twice the cost of a model update (Breakout; not run to the end here):
--set=model.encoder=grid --set=model.decoder=grid.

Other games: Asterix-MinAtar, Freeway-MinAtar, SpaceInvaders-MinAtar, Seaquest-MinAtar.
"""

import dataclasses

from experiments import drama_catch
from mbrl_jax.envs import gymnax
from mbrl_jax.networks import decoders, encoders
from mbrl_jax.train.experiment import Experiment
from mbrl_jax.train.loop import Phase


def get_experiment() -> Experiment:
    """The experiment."""
    base = drama_catch.get_experiment()
    model = dataclasses.replace(
        base.model,
        encoder=encoders.Dense(width=256),
        decoder=decoders.Dense(width=256),
        groups=16,
        head_layers=2,
        head_width=128,
        unimix=0.005,
        optimiser=drama_catch.adam(2e-3, 1000.0),
    )
    behaviour = dataclasses.replace(
        base.behaviour,
        horizon=12,
        actor_width=128,
        critic_width=128,
        layers=2,
        entropy=3e-3,
        optimiser=drama_catch.adam(5e-4, 100.0),
    )
    return dataclasses.replace(
        base,
        name="drama_minatar",
        env=gymnax.Config("Breakout-MinAtar"),
        model=model,
        behaviour=behaviour,
        replay=dataclasses.replace(base.replay, capacity=100_000),
        phases=(Phase(2_000, learn=False), Phase(18_000, learn_every=4)),
        log_every=500,
        checkpoint_every=2_000,
        eval_episodes=20,
        open_loop_context=4,
    )
