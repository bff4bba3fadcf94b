"""RepeatPrevious against POPGym's definition, played with a list of cards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.envs import doctor
from mbrl_jax.envs.spec import EpisodicState
from mbrl_jax.envs.tasks import repeat_previous
from mbrl_jax.types import ArraySpec, DiscreteSpec, EnvSpec
from tests.envs.tasks.play import play

pytestmark = pytest.mark.usefixtures("quick_compile")

EASY, MEDIUM, HARD = (
    repeat_previous.Config(f"RepeatPrevious{n}") for n in ("Easy", "Medium", "Hard")
)
# POPGym's arguments, its longest episode, and what an answer is worth.
PUBLISHED = {
    EASY: (52, 4, 51, 1 / 48),
    MEDIUM: (104, 32, 103, 1 / 72),
    HARD: (156, 64, 155, 1 / 92),
}


def episode(pile, k, actions):
    """What POPGym gives for a pile of suits, dealt from its end: (cards, rewards, cut) by step."""
    pile, cards = list(pile), len(pile)
    hand = [pile.pop()]
    for action in actions:
        cut, reward = len(pile) == 1, 0.0
        if len(hand) >= k:
            reward = (1 if action == hand[-k] else -1) / (cards - k)
        hand.append(pile.pop())
        yield hand[-1], reward, cut
        if cut:
            return


@pytest.mark.parametrize("config", PUBLISHED, ids=lambda c: c.name)
def test_rows_are_those_of_the_definition(config):
    cards, k, longest, _ = PUBLISHED[config]
    states, rows, actions = play(config, longest + 20, lanes=3)
    assert config.make().spec == EnvSpec(ArraySpec((4,), "bool"), DiscreteSpec(4))
    for lane in range(3):
        suits = states.inner.suits[lane, 0]
        np.testing.assert_array_equal(np.bincount(suits), [cards // 4] * 4)
        dealt = list(episode(suits[::-1], k, actions[lane]))
        assert len(dealt) == longest and dealt[-1][2]
        shown, rewards, cut = map(np.array, zip(*dealt, strict=True))
        mine = jax.tree.map(lambda x, lane=lane: x[lane, 1 : longest + 1], rows)
        np.testing.assert_array_equal(mine.observation, np.eye(4, dtype=bool)[shown])
        np.testing.assert_allclose(mine.reward, rewards, rtol=1e-6)
        np.testing.assert_array_equal(mine.is_last, cut)
        assert not mine.is_terminal.any() and not mine.is_first.any()
        # The row behind the last one begins another pile.
        assert rows.is_first[lane, longest + 1] and rows.reward[lane, longest + 1] == 0
        assert (states.inner.suits[lane, longest + 1] != suits).any()


def test_rewards_of_a_pile_in_order_that_is_always_answered_alike():
    """Golden: suits 0, 1, 2, 3, 0, …, and 0 said to each; k = 4."""
    env = EASY.make()
    pile = repeat_previous.Pile(jnp.tile(jnp.arange(4), 13), jnp.ones((), jnp.int32))
    state = EpisodicState(pile, jnp.zeros((), bool))
    step = lambda state, key: env.step(state, key, jnp.int32(0))  # noqa: E731
    rows = jax.jit(lambda keys: jax.lax.scan(step, state, keys)[1])(
        jax.random.split(jax.random.key(0), 51)
    )
    wanted = [0, 0, 0] + [1, -1, -1, -1] * 12
    np.testing.assert_allclose(rows.reward * 48, wanted, atol=1e-5)
    np.testing.assert_array_equal(np.argmax(rows.observation, -1), np.arange(1, 52) % 4)
    assert float(rows.reward.sum()) == pytest.approx(-0.5)


@pytest.mark.parametrize("config", PUBLISHED, ids=lambda c: c.name)
def test_who_remembers_has_1(config):
    _, k, longest, worth = PUBLISHED[config]
    env = config.make()

    def body(state, key):
        seen = [jnp.argmax(x) for x in state[1]]  # of the last k rows, the newest last
        after, row = env.step(state[0], key, seen[0].astype(jnp.int32))
        return (after, jnp.concatenate([state[1][1:], row.observation[None]])), row.reward

    def run(key):
        state, row = env.reset(key)
        memory = jnp.zeros((k, 4), bool).at[-1].set(row.observation)
        return jax.lax.scan(body, (state, memory), jax.random.split(key, longest))[1]

    rewards = np.asarray(jax.jit(run)(jax.random.key(1)))
    np.testing.assert_allclose(rewards[: k - 1], 0)
    np.testing.assert_allclose(rewards[k - 1 :], worth, rtol=1e-6)
    assert rewards.sum() == pytest.approx(1.0, abs=1e-5)


def test_random_play_has_minus_a_half():
    returns = play(EASY, 51, lanes=256, seed=2)[1].reward.sum(1)
    assert returns.mean() == pytest.approx(-0.5, abs=4 * 0.125 / 16)  # 48 answers: σ is 1/8
    assert returns.std() == pytest.approx(0.125, rel=0.2)


def test_the_doctor_finds_nothing():
    findings = doctor.check(EASY, steps=200)
    assert [f for f in findings if f.severity != "ok"] == []


def test_a_pile_without_answers_is_refused():
    with pytest.raises(ValueError, match="k is 52, and has to be less than the 52 cards"):
        repeat_previous.Config(k=52).make()
    assert repeat_previous.Config(decks=2, k=5).sizes == (104, 5)
