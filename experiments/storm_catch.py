"""STORM (arXiv 2310.09615) at a small size learns bsuite Catch.

    python -m launch.train --experiment=storm_catch --num_seeds=4 --workdir=runs/storm

Every switch is as published (`storm_atari100k`): attention across the ends of episodes and dropout
in training; imagination behind contexts of their own, its ends all or nothing, none of its steps
weighed, v of the current state in its returns; and a policy that acts on what the model expects,
without having seen the frame, of the last 16 rows, those of earlier episodes included.

Expect (random play: about -0.6): the criterion, set before the run, is a mean return over the last
fifth of 2,500 steps of at least 0.95 on 3 of 4 seeds (`--seed=0`). It is met: 1.0 on all four, also
greedily. About seven minutes of a core for 4 seeds, of which 1.5 compile.

Sizes, learning rates, Bernoulli reconstruction, no free nats, entropy 2e-2, a uniform share of
0.001, and random actions before and beside the policy's own are those of `drama_catch`; everything
else is as published. Nothing else was tried before: four seeds of `--seed=100` reached 0.96 or 1.
**The published loss is too slow here**: with squared errors and one free nat such seeds have 0.36
to 0.76 ([results](results/README.md#catch-storm)).
"""

import dataclasses

from experiments import storm_atari100k
from experiments.drama_catch import adam
from mbrl_jax.envs import gymnax
from mbrl_jax.experiment.experiment import Experiment
from mbrl_jax.loops.phases import Phase
from mbrl_jax.networks import decoders, encoders
from mbrl_jax.replay import ring


def get_experiment() -> Experiment:
    """The experiment."""
    published = storm_atari100k.get_experiment()
    model, behaviour, agent = published.model, published.behaviour, published.agent
    return Experiment(
        name="storm_catch",
        env=gymnax.Config("Catch-bsuite"),
        model=dataclasses.replace(
            model,
            core=dataclasses.replace(model.core, width=64, heads=4, window=32),
            encoder=encoders.Dense(width=128),
            decoder=decoders.Dense(width=128),
            groups=8,
            classes=8,
            head_width=64,
            num_bins=63,
            reconstruction="bernoulli",
            unimix=0.001,
            free_nats=0.0,
            optimiser=adam(3e-3, 1000.0),
        ),
        behaviour=dataclasses.replace(
            behaviour,
            horizon=9,
            actor_width=64,
            critic_width=64,
            num_bins=63,
            entropy=2e-2,
            optimiser=adam(1e-3, 100.0),
        ),
        replay=ring.Config(capacity=10_000, batch_size=16, length=17),  # frames of a window
        agent=dataclasses.replace(agent, num_starts=128),
        phases=(
            Phase(500, learn=False, random_share=1.0),
            Phase(1_400, random_share=0.5),
            Phase(600),
        ),
        debug=(
            "model.core.width=16",
            "model.core.layers=1",
            "replay.batch_size=2",
            "replay.length=8",
            "agent.num_starts=8",
            "agent.acting.rows=4",
            "behaviour.horizon=3",
        ),
        with_parts=published.with_parts,
    )
