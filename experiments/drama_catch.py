"""Drama (arXiv 2410.08893) at a small size learns bsuite Catch.

    python -m launch.train --experiment=drama_catch --num_seeds=4 --workdir=runs/catch

Expect: random play returns about -0.6; with half of the actions random it climbs to about 0, and
from step 1,900 on, when the policy acts alone, nearly every episode returns 1: the mean over the
last fifth is at least 0.95 on 3 of 4 seeds. About 1.5 minutes for 4 seeds on 2 CPU cores.
`--set=model.core=gru` and `--set=model.core=mamba` learn it too.

What matters at this size (measured): Bernoulli reconstruction, because with squared error the
ball is never encoded; no free nats, because a step carries almost no information given the past;
entropy 2e-2, because the policy must not settle before the model is right; and random actions, all
of them for 500 steps and half of them for 1,400 more. Without those, some seeds had seen hardly a
catch in one of the five columns; their model then expects none there, and so never tries.
"""

from mbrl_jax import optim
from mbrl_jax.agents import apart
from mbrl_jax.behaviours import actor_critic
from mbrl_jax.cores import mamba2
from mbrl_jax.envs import gymnax
from mbrl_jax.experiment.experiment import Experiment
from mbrl_jax.loops.phases import Phase
from mbrl_jax.networks import decoders, encoders
from mbrl_jax.replay import ring
from mbrl_jax.world_models import drama


def adam(learning_rate: float, clip_norm: float) -> optim.Config:
    """Adam without warm-up."""
    return optim.Config("adam", learning_rate, clip_norm, warmup=0, eps=1e-8)


def get_experiment() -> Experiment:
    """The experiment."""
    return Experiment(
        name="drama_catch",
        env=gymnax.Config("Catch-bsuite"),
        model=drama.Config(
            core=mamba2.Config(width=64, layers=2, head_size=16, chunk_size=16),
            encoder=encoders.Dense(width=128),
            decoder=decoders.Dense(width=128),
            groups=8,
            classes=8,
            prior_layers=1,
            head_width=64,
            num_bins=63,
            reconstruction="bernoulli",
            zero_reward_output=True,
            unimix=0.001,
            free_nats=0.0,
            optimiser=adam(3e-3, 1000.0),
        ),
        behaviour=actor_critic.Config(
            horizon=9,
            actor_width=64,
            critic_width=64,
            layers=1,
            num_bins=63,
            output_gain=0.0,
            entropy=2e-2,
            optimiser=adam(1e-3, 100.0),
        ),
        replay=ring.Config(capacity=10_000, batch_size=16, length=16),
        agent=apart.Config(num_starts=128),
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
            "behaviour.horizon=3",
        ),
        # Their observations have no bounds, which Bernoulli reconstruction needs.
        with_parts=tuple(
            (f"env={family}", ("model.reconstruction=squared",))
            for family in ("gymnasium", "dm_control", "brax")
        ),
    )
