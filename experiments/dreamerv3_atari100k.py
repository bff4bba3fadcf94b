"""DreamerV3 (arXiv 2301.04104, as its code stands since 2024) on Atari with 100,000 steps.

    python -m launch.train --experiment=dreamerv3_atari100k --set=env.name=Pong-v5 \\
        --workdir=runs/dreamer_pong

The published size for this benchmark is 200m. `--set=model.deter=2048` is 12m: a published width of
the state brings the other numbers of its size along (512, 2048, 3072, 4096, 6144, 8192, 12288 are
1m, 12m, 25m, 50m, 100m, 200m and 400m). An update follows every fourth step (16 windows of 64 rows,
256 replayed rows for a step); the first 1,024 steps are played by the untrained policy.

Expect (published at 400,000 frames, five seeds): Boxing 87, Pong -5, Breakout 11. Not reproduced
here: it needs an accelerator, where an update of this size takes a good part of a second; on two
cores it would take minutes. `DIFFERENCES` says where this is not the published code.
"""

import dataclasses

from mbrl_jax.agents import joint
from mbrl_jax.behaviours import dreamer
from mbrl_jax.envs import atari
from mbrl_jax.experiment.experiment import Experiment
from mbrl_jax.experiment.switches import Difference
from mbrl_jax.loops.phases import Phase
from mbrl_jax.replay import ring
from mbrl_jax.world_models import rssm_sizes

SIZE = "200m"

DIFFERENCES = (
    Difference(
        "the latents that a window begins from and leaves behind lie in bfloat16",
        "in float32: 41 kB a row at the 200m size, 4.5 GB for a run",
        "half precision is not here yet",
    ),
    Difference(
        "the newest rows are trained on as soon as they are there, beside uniform windows",
        "windows are uniform",
        "one of 16 windows of an update",
    ),
    Difference(
        "bfloat16 in the nets",
        "float32 throughout",
        "half precision is not here yet",
    ),
    Difference(
        "the head of ends learns γ (1 - terminal)",
        "it learns 1 - terminal, and γ stands in the returns",
        "the same returns of a trained head; γ can be changed without a new model",
    ),
    Difference(
        "one optimiser for model, actor and critic",
        "one for the model and one for actor and critic, with the same settings",
        "clipping and steps are of single tensors, so that nothing changes",
    ),
)

# What is published here where Drama's code has it otherwise.
PUBLISHED = (
    (
        "behaviour=dreamer",
        (
            "behaviour.rewards=aligned",
            "behaviour.mixed_value=next",
            "behaviour.ends=probability",
            "behaviour.weigh_reached=true",
            "behaviour.normalise_input=false",
            "behaviour.input_rows=once",
        ),
    ),
    ("agent=joint", ("agent.acting.latent=posterior", "agent.acting.rows=0")),
)


def get_experiment() -> Experiment:
    """The experiment."""
    units = rssm_sizes.SIZES[SIZE].units
    return Experiment(
        name="dreamerv3_atari100k",
        env=atari.Config("Pong-v5", atari.PROTOCOLS["dreamerv3"]),
        model=dataclasses.replace(rssm_sizes.sized(SIZE), unled="counted"),
        behaviour=dreamer.Config(
            actor_width=units,
            critic_width=units,
            discounted_weights=True,
            optimiser=rssm_sizes.OPTIMISER,
        ),
        replay=ring.Config(capacity=110_000, batch_size=16, length=64),
        agent=joint.Config(context="stored"),
        phases=(
            Phase(1_024, learn=False),
            Phase(108_976, learn_every=4),
        ),
        log_every=256,
        checkpoint_every=1_024,
        eval_episodes=10,
        eval_max_steps=27_000,
        open_loop_context=8,
        with_parts=(*rssm_sizes.with_sizes(), *PUBLISHED),
        debug=(
            "model.deter=16",
            "model.hidden=8",
            "model.groups=4",
            "model.classes=4",
            "model.blocks=2",
            "model.encoder.depth=2",
            "model.decoder.depth=2",
            "model.decoder.deter=16",
            "model.decoder.units=8",
            "model.decoder.blocks=2",
            "model.head_width=8",
            "behaviour.actor_width=8",
            "behaviour.critic_width=8",
            "behaviour.horizon=3",
            "behaviour.last_rows=4",
            "replay.capacity=200",
            "replay.batch_size=2",
            "replay.length=8",
        ),
    )
