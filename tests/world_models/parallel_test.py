"""Drama's form with other readers (S4WM, R2I): all nets read both; R2I's states and seams."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import distributions, masks, testing
from mbrl_jax.cores import dplr, s5
from mbrl_jax.types import ArraySpec, DiscreteSpec, EnvSpec
from mbrl_jax.world_models import r2i, s4wm
from mbrl_jax.world_models.drama import nets

pytestmark = pytest.mark.usefixtures("quick_compile")

SPEC = EnvSpec(ArraySpec((3,), "float32"), DiscreteSpec(2))
LENGTH = 8  # L


@pytest.fixture(scope="module")
def tiny_r2i(tiny_drama):
    """Its own settings with the nets of the smallest Drama."""
    of_drama = {f.name: getattr(tiny_drama, f.name) for f in dataclasses.fields(tiny_drama)}
    sizes = ("encoder", "decoder", "groups", "classes", "head_width", "num_bins", "reconstruction")
    config = r2i.Config(
        core=s5.Config(width=8, layers=1, state_size=8, blocks=2, chunk_size=4), free_nats=0.0
    )
    return dataclasses.replace(config, **{name: of_drama[name] for name in sizes})


@pytest.fixture(scope="module")
def batch():
    """Three windows: an episode ends in row 4, in row 1, and nowhere."""
    rows = [
        testing.random_trajectory(SPEC, jax.random.key(i), LENGTH + 1, resets)
        for i, resets in enumerate(((5,), (2,), ()))
    ]
    return jax.tree.map(lambda *x: jnp.stack(x), *rows)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["r2i", "s4wm"])
def test_models_that_read_both_keep_the_laws(tiny_r2i, model):
    config = tiny_r2i
    if model == "s4wm":
        shared = {f.name: getattr(tiny_r2i, f.name) for f in dataclasses.fields(tiny_r2i)}
        core = dplr.Config(width=8, layers=1, layers_per_block=1, state_size=4, chunk_size=4)
        own = ("core", "prior_layers", "dynamics_scale", "features_hold", "posterior_layers")
        config = s4wm.Config(core, **{k: v for k, v in shared.items() if k not in own})
    testing.check_world_model(config, SPEC, length=5)


def test_the_losses_are_those_of_single_rows(tiny_r2i, batch):
    """Each term from `observe_sequence` with the same keys: rows' own nets, in float64 sums."""
    config = dataclasses.replace(tiny_r2i, free_nats=1.0)
    model, parts = config.make(SPEC), nets.make_parts(config, SPEC)
    state = jax.jit(model.init)(jax.random.key(0))
    state = jax.tree.map(lambda x: x + 0.05, state._replace(opt=()))  # no head begins at zero
    key = jax.random.key(1)
    _, (_, _, metrics) = jax.jit(model.loss)(state.params, state.stats, key, batch)

    @jax.jit
    def row_by_row(key, rows):
        latents = model.observe_sequence(
            state, key, model.initial_latent(), jnp.zeros((), jnp.int32), rows
        )
        every = jax.vmap(lambda t: model.latent_at(latents, t))(jnp.arange(LENGTH + 1))
        # Before a window nothing is known.
        every = every._replace(output=every.output.at[0].set(0.0))
        posterior, _ = nets.posterior(
            parts, state.params, state.stats, rows.timestep.observation, False
        )
        both = jnp.concatenate([every.sample, every.output], axis=-1)
        return {
            "posterior": posterior,
            "prior": nets.prior(parts, state.params, every.output),
            "drawn": parts.decoder.apply({"params": state.params["decoder"]}, both, False),
            "reward": parts.reward.apply({"params": state.params["reward"]}, both),
        }

    found = jax.vmap(row_by_row)(jax.random.split(key, 3), batch)
    first = np.asarray(batch.timestep.is_first)
    counts = ~first
    counts[:, 0] = False
    error = ((found["drawn"] - batch.timestep.observation) ** 2).sum(-1).mean()
    np.testing.assert_allclose(metrics["model/reconstruction"][0], error, rtol=1e-4)
    kl = distributions.categorical_kl(found["posterior"], found["prior"]).sum(-1)
    assert 0.1 < (np.asarray(kl)[counts] < 1.0).mean() < 0.9
    expected = 0.5 * np.maximum(kl, 1.0)[counts].mean()
    np.testing.assert_allclose(metrics["model/dynamics"][0], expected, rtol=1e-4)
    reward = distributions.two_hot_loss(found["reward"], batch.timestep.reward)
    expected = masks.masked_mean(reward, jnp.asarray(counts))
    np.testing.assert_allclose(metrics["model/reward"][0], expected, rtol=1e-4)


def test_the_policy_sees_the_state_of_the_core(tiny_r2i):
    model = tiny_r2i.make(SPEC)
    state = jax.jit(model.init)(jax.random.key(0))
    latent = model.initial_latent()
    held = sum(x.size for x in jax.tree.leaves(latent.carry))
    features = model.features(state, latent)
    assert features.shape == (latent.sample.size + latent.output.size + held,)
    moved = latent._replace(carry=jax.tree.map(lambda x: x + 1.0, latent.carry))
    np.testing.assert_array_equal(model.features(state, moved)[-held:], features[-held:] + 1.0)


def _core_states(config, batch):
    """Output of the core behind every row [B, L, F]."""
    model = config.make(SPEC)
    state = jax.jit(model.init)(jax.random.key(0))
    _, (entries, _, _) = jax.jit(model.loss)(state.params, state.stats, jax.random.key(1), batch)
    return np.asarray(entries.outputs), model, state, entries


def test_an_early_seam_lets_two_rows_of_the_episode_before_through(tiny_r2i, batch):
    """What leads to row 5, the first of an episode, is what rows 3 and 4 alone lead to."""
    early = dataclasses.replace(tiny_r2i, boundaries="early")
    outputs, model, state, entries = _core_states(early, batch)
    alone = jax.tree.map(lambda x: x[:, 3:], batch)  # begins at row 3: nothing before it
    parts = nets.make_parts(early, SPEC)
    inputs = nets.core_input(parts, entries.samples[:1, 3:5], alone.action[:1, :2])
    never = jnp.zeros((1, 2), bool)
    expected, _ = nets.training_pass(parts, state.params, jax.random.key(0), inputs, never)
    np.testing.assert_allclose(outputs[0, 4], expected[0, 1], atol=1e-5)
    latent = model.latent_at(jax.tree.map(lambda x: x[0], entries), jnp.asarray(5))
    np.testing.assert_allclose(latent.output, expected[0, 1], atol=1e-5)

    reset, model, _, entries = _core_states(tiny_r2i, batch)
    assert np.abs(reset[0, 4] - outputs[0, 4]).max() > 1e-3
    latent = model.latent_at(jax.tree.map(lambda x: x[0], entries), jnp.asarray(5))
    assert not np.asarray(latent.output).any()


def test_both_and_an_unseen_last_row_are_refused(tiny_r2i):
    with pytest.raises(ValueError, match="use last_row=seen"):
        dataclasses.replace(tiny_r2i, last_row="arrival").make(SPEC)
