"""STORM as published (arXiv 2310.09615), on Atari with 102,000 steps: 26 games, Pong by default.

    python -m launch.train --experiment=storm_atari100k --set=env.name=Pong-v5 --workdir=runs/pong

A categorical posterior of the frame alone, a transformer over one token a step, and an actor-critic
that learns from imagination behind 1,024 contexts of their own. Drama was made from it, so that it
is Drama's world model with another core, other nets and other numbers. Everything is as the
published code has it, oddities included; `python -m launch.switches --experiment=storm_atari100k`
lists those, what we would choose, and the differences that stay (`DIFFERENCES`). The pictures of
demonstrations that the code can mix in are off by default there, and not made here.

Expect (of the authors' own five seeds): human-normalised mean 1.22 and median 0.43 over the 26
games; Pong 11. Not reproduced here: a game has 100,976 updates, which are hours on a GPU. With
`--steps=1030` it plays, learns six times and is evaluated, in minutes of a core. The games:
`mbrl_jax.envs.atari.ATARI_100K`.
"""

from mbrl_jax import acting, optim
from mbrl_jax.agents import apart
from mbrl_jax.behaviours import actor_critic
from mbrl_jax.cores import storm
from mbrl_jax.envs import atari
from mbrl_jax.experiment.experiment import Experiment
from mbrl_jax.experiment.switches import Difference
from mbrl_jax.loops.phases import Phase
from mbrl_jax.networks import decoders, encoders
from mbrl_jax.replay import ring
from mbrl_jax.world_models import drama

# Where STORM does otherwise than Drama, whose oddities the switches of the shared parts name.
PUBLISHED = (
    "model.core.dropout=0.1",
    "model.integer_buffer=false",
    "behaviour.rewards=aligned",
    "behaviour.normalise_input=false",
    "behaviour.input_rows=once",
    "agent.acting.boundaries=ignored",
)

DIFFERENCES = (
    Difference(
        "no no-op frame before a game; a seed that is given to each reset, so that all games of a "
        "run begin alike, but for the repeated actions",
        "one no-op frame; games begin each in its own way",
        "EnvPool cannot do otherwise",
    ),
    Difference(
        "half precision (bfloat16) with a scale for its gradients",
        "float32 throughout",
        "results that do not hang on the card",
    ),
    Difference(
        "the context of the first actions after the warm-up begins there, at step 1,025",
        "it holds up to 16 frames of before",
        "15 actions of a run, for a memory that knows the phases of a run",
    ),
    Difference(
        "a window of 64 frames can be drawn as soon as its last action was taken: from 962 starts "
        "at first",
        "one step later, when the reward of that action stands in the replay: from 961",
        "a row holds what arrived with its frame; the newest window comes an update late",
    ),
    Difference(
        "evaluation draws its actions, and its context goes on through the ends of episodes in "
        "five lanes, of which the first 20 episodes to end count",
        "20 greedy episodes; the context goes on too",
        "one evaluation for all systems; the first to end are the short ones",
    ),
    Difference(
        "a target below the last two-hot bin has the index -1, which is an error",
        "it is clipped to that bin",
        "no reward is below -4.8e8",
    ),
    Difference(
        "the transformer ends after 64 rows",
        "it goes on with the last 64",
        "no published window is longer",
    ),
)

DEBUG = (
    "model.core.width=16",
    "model.core.heads=2",
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
)


def get_experiment() -> Experiment:
    """The experiment."""
    return Experiment(
        name="storm_atari100k",
        env=atari.Config("Pong-v5", atari.PROTOCOLS["storm"]),
        model=drama.Config(
            core=storm.Config(window=64, dropout=0.1),
            encoder=encoders.Image64(32, (1, 2, 4, 8), encoders.STORM),
            decoder=decoders.Image64(32, (1, 2, 4, 8), encoders.STORM),
            head_layers=2,
            head_width=512,
            head_hidden="layer_relu",
            reconstruction="squared",
            dynamics_scale=0.5,
            boundaries="ignored",
            last_row="arrival",
            optimiser=optim.Config("adam", 1e-4, 1000.0, warmup=0, eps=1e-8),
        ),
        behaviour=actor_critic.Config(
            actor_width=512,
            critic_width=512,
            layers=2,
            hidden="layer_relu",
            output_gain=None,
            mixed_value="same",
            ends="threshold",
            weigh_reached=False,
            optimiser=optim.Config("adam", 3e-5, 100.0, warmup=0, eps=1e-5),
        ),
        replay=ring.Config(capacity=100_000, batch_size=16, length=64),  # frames of a window
        agent=apart.Config(
            num_starts=1024,
            starts="contexts",
            context_length=8,
            acting=acting.Config(latent="prior", rows=16, boundaries="ignored"),
        ),
        phases=(
            Phase(1_024, learn=False, random_share=1.0),
            Phase(2, random_share=1.0),
            Phase(100_974),
        ),
        log_every=250,
        checkpoint_every=250,
        eval_episodes=20,
        eval_max_steps=27_000,
        open_loop_context=8,
        debug=DEBUG,
        with_parts=(("model.core=storm", PUBLISHED),),
    )
