"""Distributions of every kind of action against scipy and finite differences; what is learned."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mbrl_jax import optim
from mbrl_jax.behaviours import actor_critic, dreamer, ppo
from mbrl_jax.behaviours.choices import choices_of
from mbrl_jax.types import (
    ArraySpec,
    BoundedSpec,
    BoundModel,
    DictActionSpec,
    DiscreteSpec,
    EnvSpec,
    MultiDiscreteSpec,
    Prediction,
    Starts,
)

pytestmark = pytest.mark.usefixtures("quick_compile")

KINDS = {
    "discrete": choices_of(DiscreteSpec(3)),
    "multi_discrete": choices_of(MultiDiscreteSpec((2, 3))),
    "bounded_normal": choices_of(BoundedSpec(2), "bounded_normal"),
    "tanh_normal": choices_of(BoundedSpec(2), "tanh_normal"),
    "dictionary": choices_of(
        DictActionSpec((("move", DiscreteSpec(3)), ("force", BoundedSpec(1)))), "tanh_normal"
    ),
}


def drawn(choices, raw, number=20_000):
    """Choices and their log-probabilities."""
    keys = jax.random.split(jax.random.key(0), number)
    distribution = choices.read(raw)
    found = jax.vmap(choices.sample, (0, None))(keys, distribution)
    return found, jax.vmap(choices.log_prob, (None, 0))(distribution, found)


@pytest.mark.parametrize("name", KINDS)
def test_entropies_are_mean_negative_log_probabilities(name):
    choices = KINDS[name]
    raw = jnp.linspace(-1.0, 1.2, choices.size)
    found, log_prob = drawn(choices, raw)
    entropy = jax.vmap(choices.entropy, (None, 0))(choices.read(raw), found).mean()
    np.testing.assert_allclose(entropy, -log_prob.mean(), atol=0.03)
    # Its gradient, too: of the tanh-normal from samples, of the others exactly.
    gradient = jax.grad(
        lambda r: jax.vmap(choices.entropy, (None, 0))(choices.read(r), found).mean()
    )

    def of_samples(r):
        return -drawn(choices, r, 200_000)[1].mean()

    direction = jnp.sin(jnp.arange(choices.size) + 1.0)
    along = (of_samples(raw + 0.05 * direction) - of_samples(raw - 0.05 * direction)) / 0.1
    np.testing.assert_allclose(gradient(raw) @ direction, along, atol=0.05)


def test_densities_are_those_of_scipy():
    raw = jnp.array([0.3, -0.8, 0.1, -1.0])
    mean, spread = np.asarray(raw[:2], float), np.asarray(raw[2:], float)
    bounded = KINDS["bounded_normal"]
    std = 0.1 + 0.9 / (1 + np.exp(-(spread + 2)))
    choice = jnp.array([0.4, -1.7])
    wanted = stats.norm.logpdf(choice, np.tanh(mean), std).sum()
    np.testing.assert_allclose(bounded.log_prob(bounded.read(raw), choice), wanted, rtol=1e-5)
    np.testing.assert_allclose(bounded.action(choice), [0.4, -1.0])

    squashed = KINDS["tanh_normal"]
    std = np.exp(-5 + 3.5 * (np.tanh(spread) + 1))
    normal = stats.norm.logpdf(choice, mean, std) - np.log(1 - np.tanh(np.asarray(choice)) ** 2)
    np.testing.assert_allclose(
        squashed.log_prob(squashed.read(raw), choice), normal.sum(), rtol=1e-5
    )
    np.testing.assert_allclose(squashed.action(choice), np.tanh(np.asarray(choice)), rtol=1e-6)


def test_several_discrete_choices_are_drawn_apart():
    choices, raw = KINDS["multi_discrete"], jnp.array([0.0, 1.0, 0.0, 1.0, 2.0])
    found, log_prob = drawn(choices, raw)
    shares = [np.bincount(found[:, i]) / len(found) for i in range(2)]
    first, second = (np.exp(np.asarray(x)) for x in choices.read(raw))
    np.testing.assert_allclose(shares[0], first, atol=0.02)
    np.testing.assert_allclose(shares[1], second, atol=0.02)
    assert choices.mode(choices.read(raw)).tolist() == [1, 2]
    wanted = np.log(first[found[:, 0]] * second[found[:, 1]])
    np.testing.assert_allclose(log_prob, wanted, rtol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_leading_axes_are_kept(name):
    choices = KINDS[name]
    raw = jax.random.normal(jax.random.key(0), (4, 5, choices.size))
    distribution = choices.read(raw)
    keys = jax.random.split(jax.random.key(1), (4, 5))
    found = jax.vmap(jax.vmap(choices.sample))(keys, distribution)
    assert choices.log_prob(distribution, found).shape == (4, 5)
    assert choices.entropy(distribution, found).shape == (4, 5)
    shapes = [
        jax.tree.map(jnp.shape, x)
        for x in (choices.mode(distribution), choices.action(found), found)
    ]
    assert shapes[0] == shapes[1] == shapes[2]


# ---------------------------------------------------------------------------- learned in a model

TARGET = jnp.array([0.5, -0.5])


def bandit(spec):
    """A model whose next latent is the action, paid by its distance from what is right."""

    def imagine(key, latent, action):
        del key, latent
        if isinstance(spec, BoundedSpec):
            assert action.shape == (2,)
            return -jnp.square(action - TARGET).sum()
        return -jnp.abs(action - jnp.array([1, 2])).sum().astype(jnp.float32)

    nothing = dict.fromkeys(("observe", "observe_sequence", "latent_at", "decode"))
    return BoundModel(
        initial_latent=lambda: jnp.zeros(()),
        imagine=imagine,
        predict=lambda latent: Prediction(latent, jnp.ones(()), {}),
        features=lambda latent: jnp.zeros((3,)) + 0.0 * latent,
        **nothing,
    )


@pytest.mark.parametrize(
    ("module", "spec", "options"),
    [
        (actor_critic, BoundedSpec(2), {}),
        (actor_critic, BoundedSpec(2), {"real_actions": "tanh_normal"}),
        (actor_critic, MultiDiscreteSpec((3, 4)), {}),
        (ppo, BoundedSpec(2), {}),
        (ppo, BoundedSpec(2), {"normalise_input": True, "input_rows": "passes"}),
    ],
)
def test_actors_find_what_is_paid(module, spec, options):
    config = module.Config(
        horizon=1,
        actor_width=16,
        critic_width=16,
        layers=1,
        num_bins=31,
        gamma=0.0,
        entropy=1e-4,
        optimiser=optim.Config("adam", 1e-2, warmup=0, eps=1e-8),
        **options,
    )
    behaviour = config.make(EnvSpec(ArraySpec((3,), "float32"), spec))
    model, state = bandit(spec), behaviour.init(jax.random.key(0), jnp.zeros((3,)))
    starts = Starts(jnp.zeros((64,)), jnp.ones((64,)))

    def step(state, key):
        return behaviour.update(state, key, model, starts, None, jnp.uint32(0))[0], ()

    keys = jax.random.split(jax.random.key(1), 300)
    state = jax.jit(lambda s: jax.lax.scan(step, s, keys)[0])(state)
    _, action = behaviour.act(state, jax.random.key(2), (), jnp.zeros(()), model, explore=False)
    if isinstance(spec, BoundedSpec):
        np.testing.assert_allclose(action, TARGET, atol=0.15)
    else:
        assert action.tolist() == [1, 2]
    _, drawn_action = behaviour.act(
        state, jax.random.key(3), (), jnp.zeros(()), model, explore=True
    )
    assert (np.abs(np.asarray(drawn_action)) <= (1 if isinstance(spec, BoundedSpec) else 3)).all()


def test_dreamer_takes_real_valued_actions():
    config = dataclasses.replace(dreamer.Config(), actor_width=8, critic_width=8, layers=1)
    behaviour = config.make(EnvSpec(ArraySpec((3,), "float32"), BoundedSpec(2)))
    state = behaviour.init(jax.random.key(0), jnp.zeros((3,)))
    _, action = behaviour.act(
        state, jax.random.key(3), (), jnp.zeros(()), bandit(BoundedSpec(2)), explore=True
    )
    assert action.shape == (2,) and action.dtype == jnp.float32
