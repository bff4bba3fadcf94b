"""Drama at a small size on real Pong (EnvPool), 64×64 colour images.

    python -m launch.train --experiment=drama_pong_small --workdir=runs/pong_small

Expect: over 1,250 updates the error of a reconstruction, summed over 12,288 values, falls from
about 900 (mean of the first 50 updates) to about 6, and the background, the scores' places and the
borders are drawn; the policy is still random (returns of -20 to -21), because two or three games
are far too few to learn Pong. 7 CPU-minutes; 11 minutes on 2 busy CPU cores. Nothing was tuned.

The protocol is Drama's, with every episode's last frame kept (`env.protocol.seam=separate`).
Others: `--set=env.protocol=dreamerv3`; other games: `--set=env.name=Freeway-v5`.
"""

import dataclasses

from experiments import drama_catch
from mbrl_jax.cores import mamba2
from mbrl_jax.envs import atari
from mbrl_jax.experiment.experiment import Experiment
from mbrl_jax.loops.phases import Phase
from mbrl_jax.networks import decoders, encoders
from mbrl_jax.replay import ring
from mbrl_jax.world_models import drama


def get_experiment() -> Experiment:
    """The experiment."""
    base = drama_catch.get_experiment()
    return dataclasses.replace(
        base,
        name="drama_pong_small",
        env=atari.Config("Pong-v5", atari.Protocol(seam="separate")),
        model=drama.Config(
            core=mamba2.Config(width=64, layers=2, head_size=16, chunk_size=16),
            encoder=encoders.Image64(depth=4),
            decoder=decoders.Image64(depth=4),
            groups=16,
            classes=16,
            head_width=64,
            num_bins=63,
            optimiser=drama_catch.adam(1e-3, 1000.0),
        ),
        replay=ring.Config(capacity=10_000, batch_size=4, length=16),
        agent=dataclasses.replace(base.agent, num_starts=64),
        phases=(Phase(500, learn=False, random_share=1.0), Phase(2_500, learn_every=2)),
        eval_episodes=2,
        eval_max_steps=1_000,
        open_loop_context=4,
        debug=(
            "model.core.width=16",
            "model.core.layers=1",
            "model.encoder.depth=1",
            "model.decoder.depth=1",
            "model.groups=4",
            "model.classes=4",
            "replay.capacity=200",
            "replay.batch_size=2",
            "replay.length=8",
            "agent.num_starts=8",
            "behaviour.horizon=3",
        ),
    )
