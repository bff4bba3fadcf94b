"""TD-MPC2 (arXiv 2310.16828) on tasks of DeepMind Control from states, as published.

    python -m launch.train --experiment=tdmpc2_dmc --num_seeds=3 --workdir=runs/tdmpc2
    python -m launch.train --experiment=tdmpc2_dmc --set=model.width=384 --steps=50000

The model of five million parameters, MPPI with six iterations of 512 plans, an update of 256
windows for each row, actions held for two steps, γ by the published rule (0.99 for 500 rows), and
as many updates on the first, random rows as there are of them. `--set=model.width=384` is the size
of one million, and so on (`mbrl_jax.world_models.tdmpc_sizes`).

Criterion, set before any run: 839 on cartpole-swingup and 962 on walker-walk at 100,000 environment
steps in the mean of 3 seeds, which are the authors' own figures. No run was made yet: what to
Expect is open, minutes included.
"""

from experiments import tdmpc2_pendulum
from mbrl_jax.agents import joint
from mbrl_jax.behaviours import tdmpc as behaviour
from mbrl_jax.envs import envpool
from mbrl_jax.experiment.experiment import Experiment
from mbrl_jax.loops.phases import Phase
from mbrl_jax.replay import ring
from mbrl_jax.world_models import tdmpc as world_model
from mbrl_jax.world_models import tdmpc_sizes

ROWS = 500  # of an episode: 1,000 environment steps
RANDOM = 5 * ROWS


def get_experiment() -> Experiment:
    """The experiment."""
    return Experiment(
        name="tdmpc2_dmc",
        env=envpool.Config("CartpoleSwingup-v1", action_repeat=2),
        model=world_model.Config(),
        behaviour=behaviour.Config(gamma=behaviour.discount_for(ROWS)),
        replay=ring.Config(capacity=1_000_000, batch_size=256, length=3),
        agent=joint.Config(clip_norm=20.0),
        phases=(
            Phase(RANDOM, learn=False, random_share=1.0),
            Phase(RANDOM, collect=False),
            Phase(500_000 - RANDOM),
        ),
        log_every=500,
        checkpoint_every=5_000,
        eval_episodes=10,
        with_parts=tdmpc_sizes.with_sizes(),
        debug=tdmpc2_pendulum.get_experiment().debug,
    )
