"""DreamerV3 (arXiv 2301.04104) on tasks of DeepMind Control from states.

    python -m launch.train --experiment=dreamerv3_dmc --num_seeds=3 --workdir=runs/dreamer

As in `drama_dmc` an action is held for four steps, so that 12,500 rows are 50,000 environment
steps, no nats are free, and Adam replaces LaProp at 4e-5: with 16 windows of 16 rows and 64 starts
an update sees a fraction of what the published one sees. The cell has half the width of the
published "1m", in which heads, actor and critic are as wide as here; the nets for vectors are wider
and one layer less deep, and a latent has 16 classes for 4. `--set=model.deter=512` brings the
published sizes along.

Criteria, set before any run to the end: the mean over 3 seeds (`--seed=0`) of the returns in the
last 5,000 environment steps before 50,000 is at least 322 on cartpole-swingup, where an update
follows every second row (`--set=phases.1.learn_every=2`), and at least 289 on walker-walk
(`--set=env.name=WalkerWalk-v1`), with one for every row: what DreamerV3 has there (with actions
held for two steps, as far as we know). One pilot came before (`--seed=100`, cartpole, the published
"1m", windows of 32 rows, 128 starts, an update for every row): 795 after 30,000 environment steps.
It took 0.37 seconds an update, and what is different here was chosen for time alone; on walker-walk
there was no pilot.

Expect 701, 722, 730 on cartpole: its criterion is met. On walker-walk one seed was stopped after
36,000 environment steps with returns of 120 to 270: its model stays too coarse (`results/tuning`),
and that criterion is open.

A seed of cartpole costs 20 minutes of a core that it shares (13 alone), one of walker 45. Run seeds
one by one on a CPU (`--num_seeds=1 --first_seed=1`): three in one program cost up to twice as much.
"""

import dataclasses

from experiments import drama_dmc, dreamerv3_catch
from experiments.drama_catch import adam
from mbrl_jax.agents import joint
from mbrl_jax.behaviours import dreamer
from mbrl_jax.experiment.experiment import Experiment
from mbrl_jax.networks import decoders, encoders
from mbrl_jax.world_models import rssm, rssm_sizes

UNITS = rssm_sizes.SIZES["1m"].units


def get_experiment() -> Experiment:
    """The experiment."""
    base = drama_dmc.get_experiment()
    return dataclasses.replace(
        base,
        name="dreamerv3_dmc",
        model=rssm.Config(
            deter=256,
            hidden=64,
            encoder=encoders.Dense(256, 2, "dreamerv3"),
            decoder=decoders.Dense(256, 2, "dreamerv3"),
            head_width=UNITS,
            num_bins=63,
            free_nats=0.0,
            optimiser=adam(1e-3, 1000.0),
        ),
        behaviour=dreamer.Config(
            horizon=15,
            actor_width=UNITS,
            critic_width=UNITS,
            num_bins=63,
            gamma=0.98,
            entropy=3e-3,
            last_rows=4,
            optimiser=adam(3e-4, 100.0),
        ),
        replay=dataclasses.replace(base.replay, length=16),
        agent=joint.Config(),
        with_parts=rssm_sizes.with_sizes(images=False),
        debug=dreamerv3_catch.get_experiment().debug,
    )
