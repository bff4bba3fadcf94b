"""DreamerV3 (arXiv 2301.04104) at a small size on MinAtar (gymnax), Breakout by default.

    python -m launch.train --experiment=dreamerv3_minatar --num_seeds=3 --workdir=runs/dreamer

Rows, pace and nets for the grid are those of `drama_minatar`, so that the two world models can be
compared at equal updates: one for every four rows, 16 windows of 16 rows, 64 starts, 24 imagined
steps. Here one gradient trains model, actor and critic, and every start is one of the four newest
rows of a window.

No run was made to its end yet, and what to Expect is open. `experiments/README.md` has the rows of
Drama, whose seeds take 40 to 60 minutes of a core each.
"""

import dataclasses

from experiments import drama_minatar, dreamerv3_catch
from experiments.drama_catch import adam
from mbrl_jax.agents import joint
from mbrl_jax.behaviours import dreamer
from mbrl_jax.experiment.experiment import Experiment
from mbrl_jax.world_models import rssm


def get_experiment() -> Experiment:
    """The experiment."""
    base = drama_minatar.get_experiment()
    model = rssm.Config(
        deter=256,
        hidden=96,
        groups=32,
        classes=base.model.classes,
        encoder=base.model.encoder,
        decoder=base.model.decoder,
        head_layers=2,
        head_width=128,
        num_bins=63,
        reconstruction=base.model.reconstruction,
        unimix=0.005,
        free_nats=0.0,
        optimiser=base.model.optimiser,
    )
    behaviour = dreamer.Config(
        horizon=base.behaviour.horizon,
        actor_width=128,
        critic_width=128,
        layers=2,
        num_bins=63,
        output_gain=0.0,
        entropy=base.behaviour.entropy,
        last_rows=4,
        replay_scale=0.03,
        optimiser=adam(5e-4, 100.0),
    )
    return dataclasses.replace(
        base,
        name="dreamerv3_minatar",
        model=model,
        behaviour=behaviour,
        agent=joint.Config(),
        debug=dreamerv3_catch.get_experiment().debug,
    )
