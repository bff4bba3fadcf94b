"""RepeatPrevious (POPGym, arXiv 2303.01859): say the suit of the card that was seen k cards ago.

After the definition of `popgym/envs/repeat_previous.py` (github.com/proroklab/popgym, 6970a23). A
shuffled pile of N = 52 · decks cards is dealt, a card a row. The action after card t (from 0 on) is
a suit: right if it is that of card t + 1 - k, so that k = 1 asks for the card on the table and
k = 4 for the one three rows ago. It earns 1 / (N - k) if right and as much less if wrong, and
nothing before k cards have been seen. The last card ends the episode as a time limit, N - 1 steps
in all. Whoever is always right has 1, whoever guesses -1/2 in the mean.

Unlike there, a suit is seen as four booleans and not as a number.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.envs.spec import make_environment
from mbrl_jax.types import Array, DiscreteSpec, Environment, Key, bounded

SUITS, RANKS = 4, 13
# Decks and k by name.
SIZES = {
    "RepeatPreviousEasy": (1, 4),
    "RepeatPreviousMedium": (2, 32),
    "RepeatPreviousHard": (3, 64),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """One of `SIZES`; None keeps what the name says."""

    name: Literal["RepeatPreviousEasy", "RepeatPreviousMedium", "RepeatPreviousHard"] = (
        "RepeatPreviousEasy"
    )
    decks: int | None = bounded(None, low=1)
    k: int | None = bounded(None, low=1)

    @property
    def sizes(self) -> tuple[int, int]:
        """(cards, k)."""
        decks, k = SIZES[self.name]
        return SUITS * RANKS * (self.decks or decks), self.k or k

    def validate(self) -> None:
        """Raise ValueError where no action would count."""
        cards, k = self.sizes
        if k >= cards:
            raise ValueError(f"k is {k}, and has to be less than the {cards} cards of the pile")

    def make(self) -> Environment:
        """Build the environment."""
        self.validate()
        return make(self)


class Pile(NamedTuple):
    """What is hidden."""

    suits: Array  # [N] int32, in the order in which they are dealt
    seen: Array  # [] int32 cards on the table


def make(config: Config) -> Environment:
    """The task, with an observation bool [4] and four actions."""
    cards, k = config.sizes

    def reset_inner(key: Key):
        suits = jax.random.permutation(key, jnp.tile(jnp.arange(SUITS), cards // SUITS))
        return Pile(suits, jnp.ones((), jnp.int32)), _shown(suits[0])

    def step_inner(key: Key, pile: Pile, action: Array):
        del key
        right = action == pile.suits[jnp.maximum(pile.seen - k, 0)]
        earned = jnp.where(right, 1.0, -1.0) / (cards - k)
        reward = jnp.where(pile.seen >= k, earned, 0.0)
        # `make_environment` steps on behind the last card too; what comes of it is not shown.
        shown = _shown(pile.suits[jnp.minimum(pile.seen, cards - 1)])
        pile = Pile(pile.suits, pile.seen + 1)
        return pile, shown, reward, jnp.zeros((), bool), pile.seen >= cards

    return make_environment(DiscreteSpec(SUITS), reset_inner, step_inner)


def _shown(suit: Array) -> Array:
    return jnp.arange(SUITS) == suit
