"""MBPO (arXiv 1906.08253) at a small size swings up the gymnax Pendulum.

    python -m launch.train --experiment=mbpo_pendulum --num_seeds=3 --workdir=runs/pendulum

Expect (random play: about -1,200): from step 3,500 on every seed swings up, and the mean over the
last fifth of 6,000 steps lies between -250 and -80. About half a minute for 3 seeds on 2 CPU cores.

An ensemble of probabilistic networks and soft actor-critic: nothing in common with Drama but the
records, the replay, the loop and the launcher.
"""

from mbrl_jax.agents import branched
from mbrl_jax.behaviours import sac
from mbrl_jax.envs import gymnax
from mbrl_jax.experiment.experiment import Experiment
from mbrl_jax.loops.phases import Phase
from mbrl_jax.replay import dyna, ring
from mbrl_jax.world_models import ensemble


def get_experiment() -> Experiment:
    """The experiment."""
    return Experiment(
        name="mbpo_pendulum",
        env=gymnax.Config("Pendulum-v1"),
        model=ensemble.Config(
            members=5, elites=3, layers=2, width=64, weight_decay=1e-5, scale_targets=True
        ),
        behaviour=sac.Config(
            width=64,
            actor_learning_rate=1e-3,
            critic_learning_rate=1e-3,
            temperature_learning_rate=1e-3,
        ),
        replay=ring.Config(capacity=10_000, batch_size=128, length=1),
        agent=branched.Config(
            num_starts=64,
            branch_length=1,
            buffer=dyna.Config(capacity=12_800, batch_size=128, num_batches=4),
        ),
        phases=(Phase(500, learn=False), Phase(5_500)),
        log_every=200,
        checkpoint_every=1_000,
        eval_episodes=10,
        open_loop_context=1,
        debug=(
            "model.width=8",
            "behaviour.width=8",
            "replay.batch_size=8",
            "agent.num_starts=4",
            "agent.buffer.capacity=16",
            "agent.buffer.batch_size=8",
            "agent.buffer.real_fraction=0.25",
        ),
    )
