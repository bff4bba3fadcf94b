"""DreamerV3 (arXiv 2301.04104) on tasks of DeepMind Control from states.

    python -m launch.train --experiment=dreamerv3_dmc --num_seeds=3 --workdir=runs/dreamer

The model is the published "1m" for vectors, which the published code takes for these tasks. As in
`drama_dmc` an action is held for four steps, so that 12,500 rows are 50,000 environment steps, no
nats are free, and Adam replaces LaProp at 4e-5: with an update for each row, 16 windows of 32 rows
and 128 starts it sees a fraction of what the published training sees.

No run was made to its end yet, and settings were not chosen: what to Expect is open. Drama's rows
of the same task took 45 minutes of a core for 3 seeds.
"""

import dataclasses

from experiments import drama_dmc, dreamerv3_catch
from experiments.drama_catch import adam
from mbrl_jax.agents import joint
from mbrl_jax.behaviours import dreamer
from mbrl_jax.experiment.experiment import Experiment
from mbrl_jax.world_models import rssm_sizes

SIZE = "1m"


def get_experiment() -> Experiment:
    """The experiment."""
    base, units = drama_dmc.get_experiment(), rssm_sizes.SIZES[SIZE].units
    return dataclasses.replace(
        base,
        name="dreamerv3_dmc",
        model=dataclasses.replace(
            rssm_sizes.sized(SIZE, images=False),
            num_bins=63,
            free_nats=0.0,
            optimiser=adam(1e-3, 1000.0),
        ),
        behaviour=dreamer.Config(
            horizon=15,
            actor_width=units,
            critic_width=units,
            num_bins=63,
            gamma=0.98,
            entropy=3e-3,
            last_rows=8,
            optimiser=adam(3e-4, 100.0),
        ),
        agent=joint.Config(),
        with_parts=rssm_sizes.with_sizes(images=False),
        debug=dreamerv3_catch.get_experiment().debug,
    )
