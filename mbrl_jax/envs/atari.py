"""Atari games of EnvPool, and the protocols under which scores are published.

A step is `frame_skip` raw frames with one action; the frame shown is the per-pixel maximum of the
last two, resized afterwards (area interpolation), and rewards are summed. Frames, rewards, ends and
lost lives of four games were compared with the emulator itself (ale-py 0.12) over 1,500 steps each:
no byte differed. Where the game ends within a step, EnvPool shows the third frame alone, or, if
there is none, the frame of the step before; with the merged seam that frame is never stored.
"""

import dataclasses
import functools
from typing import Literal

import numpy as np

from mbrl_jax.envs.envpool import (
    Adaptor,
    action_adaptor,
    describe,
    environments,
    is_atari,
    known_tasks,
    require_task,
)
from mbrl_jax.types import ArraySpec, EnvSpec, HostEnvironments, bounded, switch

# The games of the benchmark with 100,000 steps (arXiv 1903.00374); EnvPool adds "-v5".
ATARI_100K = (
    *("Alien", "Amidar", "Assault", "Asterix", "BankHeist", "BattleZone", "Boxing", "Breakout"),
    *("ChopperCommand", "CrazyClimber", "DemonAttack", "Freeway", "Frostbite", "Gopher", "Hero"),
    *("Jamesbond", "Kangaroo", "Krull", "KungFuMaster", "MsPacman", "Pong", "PrivateEye", "Qbert"),
    *("RoadRunner", "Seaquest", "UpNDown"),
)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a game is shown and scored. The defaults are those of Drama (arXiv 2410.08893)."""

    size: int = bounded(64, low=1)  # pixels of a side
    colour: bool = True  # RGB, else gray
    stack: int = bounded(1, low=1)  # frames shown at once, as channels
    frame_skip: int = bounded(4, low=1)
    # probability that the emulator repeats the action before, for each frame
    sticky: float = bounded(0.0, low=0, high=1)
    # A game begins with 1 … `noops` raw frames of no action. EnvPool cannot do with none: 1 is the
    # nearest to the published Drama, which has no such frame.
    noops: int = bounded(1, low=1)
    fire_reset: bool = False  # one of these frames presses fire instead
    all_actions: bool = False  # all 18, else those that the game uses
    # A lost life: nothing; `is_terminal` while the game goes on; or the end of an episode, the next
    # of which begins where the game is (EnvPool plays 1 … `noops` frames there too).
    life_loss: Literal["ignore", "terminal", "episode"] = "terminal"
    clip_rewards: bool = False  # to -1, 0, 1; in evaluation rewards are raw
    max_steps: int = bounded(27_000, low=1)  # time limit of an episode: 108,000 raw frames
    seam: Literal["separate", "merged"] = switch(
        "merged",
        published="merged",
        better="separate",
        why="how episodes meet in the replay: merged, the last frame of one is never seen",
    )

    def validate(self) -> None:
        """Raise ValueError for what would end the process: `make` asks for it too."""
        if self.noops < 1:
            raise ValueError(
                f"noops={self.noops} would crash EnvPool, which plays 1 … noops frames of no "
                "action when a game begins; use noops=1"
            )

    @property
    def for_evaluation(self) -> "Protocol":
        """The same game with raw rewards, ended by nothing but its end."""
        return dataclasses.replace(self, clip_rewards=False, life_loss="ignore", seam="separate")


PROTOCOLS = {
    # Drama as published, but for the one frame of no action (specification 1.1 to 1.3).
    "drama": Protocol(),
    # DreamerV3's on 100,000 steps (arXiv 2301.04104, `atari100k` of its configuration).
    "dreamerv3": Protocol(noops=30, life_loss="ignore", seam="separate"),
    # As in the work after DQN (doi 10.1038/nature14236 with the wrappers of OpenAI's baselines).
    "dqn": Protocol(
        size=84,
        colour=False,
        stack=4,
        noops=30,
        fire_reset=True,
        life_loss="episode",
        clip_rewards=True,
        seam="separate",
    ),
    # STORM's (arXiv 2310.09615), with Drama's wrappers; it leaves on what ALE v5 repeats.
    "storm": Protocol(sticky=0.25),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """One game, e.g. "Pong-v5", under a protocol: a name from `PROTOCOLS`, or your own."""

    name: str
    protocol: Protocol | Literal["drama", "dreamerv3", "dqn", "storm"] = Protocol()

    def __post_init__(self):
        if isinstance(self.protocol, str):
            if self.protocol not in PROTOCOLS:
                raise ValueError(
                    f"unknown protocol {self.protocol!r}; there are {', '.join(PROTOCOLS)}"
                )
            # The numbers stand in the run's configuration, and single ones can be changed.
            object.__setattr__(self, "protocol", PROTOCOLS[self.protocol])

    def make(self) -> HostEnvironments:
        """Describe the game. Raises ValueError for a game that EnvPool does not know."""
        return make(self)


def protocol_of(config: Config) -> Protocol:
    """The protocol of a game; a name became one when the config was made."""
    assert isinstance(config.protocol, Protocol)
    return config.protocol


@functools.cache
def make(config: Config) -> HostEnvironments:
    """Describe a game, as it is played in training and in evaluation."""
    evaluated = dataclasses.replace(config, protocol=protocol_of(config).for_evaluation)
    return environments(make_adaptor(config), make_adaptor(evaluated))


def make_adaptor(config: Config) -> Adaptor:
    """Adapt a game: channels last, a lost life as the protocol says."""
    task = require_task(config.name, [name for name in known_tasks() if is_atari(name)])
    protocol = protocol_of(config)
    protocol.validate()
    options = {
        "img_height": protocol.size,
        "img_width": protocol.size,
        "gray_scale": not protocol.colour,
        "stack_num": protocol.stack,
        "frame_skip": protocol.frame_skip,
        "repeat_action_probability": protocol.sticky,
        "noop_max": protocol.noops,
        "use_fire_reset": protocol.fire_reset,
        "full_action_space": protocol.all_actions,
        "episodic_life": protocol.life_loss == "episode",
        "reward_clip": protocol.clip_rewards,
        "max_episode_steps": protocol.max_steps,
        "use_inter_area_resize": True,
    }
    channels = protocol.stack * (3 if protocol.colour else 1)
    shape = (protocol.size, protocol.size, channels)
    action, to_env = action_adaptor(task, describe(task, options).action_array_spec)
    spec = EnvSpec(ArraySpec(shape, "uint8"), action, protocol.seam)
    return Adaptor(task, options, spec, _channels_last, to_env, protocol.life_loss == "terminal")


def _channels_last(raw: np.ndarray) -> np.ndarray:
    """[n, C, H, W] -> [n, H, W, C], a view: the copy to the device puts it in order."""
    return np.moveaxis(raw, 1, -1)
