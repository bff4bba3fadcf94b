"""MOPO (arXiv 2005.13239) learns to swing up the gymnax Pendulum from stored rows alone.

    python -m launch.train --experiment=mopo_pendulum --num_seeds=3 --workdir=runs/mopo

TODO
"""

from mbrl_jax import datasets
from mbrl_jax.agents import branched
from mbrl_jax.behaviours import sac
from mbrl_jax.envs import gymnax
from mbrl_jax.experiment.experiment import Experiment
from mbrl_jax.loops.phases import Due, Phase
from mbrl_jax.replay import dyna, fixed
from mbrl_jax.world_models import ensemble
from mbrl_jax.world_models.combinators import early_stopped, pessimistic


def get_experiment() -> Experiment:
    """The experiment."""
    members = ensemble.Config(
        members=5, elites=3, layers=2, width=64, weight_decay=1e-5, scale_targets=True
    )
    return Experiment(
        name="mopo_pendulum",
        env=gymnax.Config("Pendulum-v1"),
        model=pessimistic.Config(
            model=early_stopped.Config(model=members, period=62), penalty=1.0
        ),
        behaviour=sac.Config(
            width=64,
            actor_learning_rate=1e-3,
            critic_learning_rate=1e-3,
            temperature_learning_rate=1e-3,
        ),
        data=(("data", datasets.Config("experiments/data/pendulum.npz")),),
        replay=fixed.Config(batch_size=128, length=1),
        agent=branched.Config(
            num_starts=64,
            branch_length=5,
            buffer=dyna.Config(capacity=12_800, batch_size=128, num_batches=4),
        ),
        phases=(
            Phase(6_000, collect=False, schedule=(Due("model"),)),
            Phase(3_000, collect=False, schedule=(Due("behaviour"),)),
        ),
        log_every=200,
        checkpoint_every=1_000,
        eval_every=1_000,
        eval_episodes=10,
        debug=(
            "model.model.model.width=8",
            "behaviour.width=8",
            "replay.batch_size=8",
            "agent.num_starts=4",
            "agent.buffer.capacity=80",
            "agent.buffer.batch_size=8",
            "agent.buffer.real_fraction=0.25",
        ),
    )
