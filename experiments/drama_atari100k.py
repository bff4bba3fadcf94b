"""Drama as published (arXiv 2410.08893), on Atari with 100,000 steps: 26 games, Pong by default.

    python -m launch.train --experiment=drama_atari100k --set=env.name=Pong-v5 --workdir=runs/pong

Everything is as the published code has it, oddities included; `python -m launch.switches` lists
those, what we would choose, and the differences that stay (`DIFFERENCES`): how games begin, float32
throughout, the context of the first actions, rows of acting that the actor's normaliser does not
count, when the newest window can be drawn, and where the published code stops.

Expect (published, unconfirmed): human-normalised mean 1.05 and median 0.27 over the 26 games; Pong
15. Not reproduced here: a game has 98,969 updates, each of 2.4 TFLOP. With --steps=1050
it plays, learns 18 times and is evaluated: 26 minutes on two cores beside other work (56 s for an
update), and 9 GB.

The other backbones: --set=model.core=mamba and --set=model.core=storm, the other learner:
--set=behaviour=ppo. Each is as published too: with the transformer other switches are published
(`with_parts`), and what --set names itself counts more. `python -m launch.switches
--set=model.core=storm` shows them. The games: `mbrl_jax.envs.atari.ATARI_100K`.
"""

from mbrl_jax import acting
from mbrl_jax.agents import apart
from mbrl_jax.behaviours import actor_critic
from mbrl_jax.envs import atari
from mbrl_jax.experiment.experiment import Experiment
from mbrl_jax.experiment.switches import Difference
from mbrl_jax.loops.phases import Phase
from mbrl_jax.replay import ring, samplers
from mbrl_jax.world_models import drama

# What is published with another backbone or learner, and so comes with it.
STORM = ("model.core.dropout=0.1", "model.integer_buffer=false", "behaviour.rewards=aligned")
WITH_PARTS = (("model.core=storm", STORM), ("behaviour=ppo", ("behaviour.slope=half",)))

DIFFERENCES = (
    Difference(
        "no no-op frame before a game; a seed that is given to each reset, so that all games of a "
        "run begin alike",
        "one no-op frame; games begin each in its own way",
        "EnvPool cannot do otherwise",
    ),
    Difference(
        "half precision in updates, in the encoder and in acting",
        "float32 throughout",
        "results that do not hang on the card; the published value decoding errs by 2 % in half",
    ),
    Difference(
        "a lane's first action after the warm-up, step 1,033, is random, and the context of the "
        "next begins with that frame",
        "actions are random up to step 1,033 in every lane, and the context holds up to 16 frames "
        "of the game",
        "15 actions of a run at the most, for a memory that knows the phases of a run",
    ),
    Difference(
        "a row seen while acting moves the statistics of the actor's input",
        "it does not",
        "one row beside the 33,792 of an update; agents do not learn while they act",
    ),
    Difference(
        "a window can be drawn as soon as its last action was taken: from 906 starts at first",
        "one step later, when the reward of that action stands in the replay: from 905",
        "a row holds what arrived with its frame; the newest window comes an update late",
    ),
    Difference(
        "which groups the integer buffer loses hangs on the last bits of a GPU's softmax",
        "on those of XLA's: the share is the same, the groups are not",
        "rounding is the machine's",
    ),
    Difference(
        "PPO with the transformer stops with an error: its imagination returns no logits",
        "it learns",
        "there is nothing to reproduce",
    ),
    Difference(
        "the transformer ends after 128 rows",
        "it goes on with the last 128",
        "no published window is longer",
    ),
)


def get_experiment() -> Experiment:
    """The experiment."""
    return Experiment(
        name="drama_atari100k",
        env=atari.Config("Pong-v5", atari.PROTOCOLS["drama"]),
        model=drama.Config(boundaries="ignored", integer_buffer=True, last_row="arrival"),
        behaviour=actor_critic.Config(
            rewards="shifted",
            mixed_value="same",
            ends="threshold",
            weigh_reached=False,
            normalise_input=True,
            input_rows="passes",
        ),
        replay=ring.Config(
            capacity=100_000,
            batch_size=16,
            length=128,  # frames of a window, beside what the last action brought
            sampler=samplers.DynamicFrequency(),
        ),
        agent=apart.Config(
            num_starts=1024,
            starts="contexts",
            context_length=8,
            acting=acting.Config(latent="prior", rows=16),
        ),
        phases=(
            Phase(1_032, learn=False, random_share=1.0),
            Phase(2, random_share=1.0),
            Phase(98_967),
            Phase(4_999, learn=False),  # lets the last episodes end
        ),
        log_every=250,
        checkpoint_every=250,
        eval_episodes=10,  # 100 in `launch.evaluate`
        eval_max_steps=27_000,
        open_loop_context=8,
        debug=(
            "model.core.width=16",
            "model.core.head_size=8",
            "model.core.layers=1",
            "model.encoder.depth=1",
            "model.decoder.depth=1",
            "model.groups=4",
            "model.classes=4",
            "model.head_width=8",
            "behaviour.horizon=3",
            "behaviour.actor_width=8",
            "behaviour.critic_width=8",
            "behaviour.layers=1",
            "replay.capacity=200",
            "replay.batch_size=2",
            "replay.length=7",
            "agent.context_length=4",
            "agent.num_starts=8",
            "agent.acting.rows=4",
        ),
        with_parts=WITH_PARTS,
    )
