"""Drama's world model: parameter counts, loss scale, masks, gradients.

Golden numbers: shared/specs/drama.md sections 7.1 and 10.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import drama_memory, r2i_memory
from mbrl_jax import optim, testing
from mbrl_jax.cores import gru, mamba, storm
from mbrl_jax.envs.spec import zero_action
from mbrl_jax.experiment.experiment import build
from mbrl_jax.networks import decoders, encoders, reconstruction
from mbrl_jax.types import ArraySpec, DiscreteSpec, EnvSpec
from mbrl_jax.world_models import drama
from tests.world_models.followed import assert_followed, imagined

pytestmark = pytest.mark.usefixtures("quick_compile")

IMAGE = ArraySpec((64, 64, 3), "uint8")

# -------------------------------------------------------------------------------- parameter counts


def _counts(num_actions, core=None):
    """Numbers of parameters of the published model by module; nothing is computed."""
    config = drama.Config() if core is None else drama.Config(core=core)
    model = config.make(EnvSpec(IMAGE, DiscreteSpec(num_actions)))
    params = jax.eval_shape(model.init, jax.random.key(0)).params
    return {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in params.items()}


def test_published_parameters_by_module_golden():
    counts = _counts(18)
    heads = counts.pop("posterior") + counts.pop("prior")
    assert heads == 1_574_912
    assert counts == {
        "encoder": 232_272,
        "core": 3_743_648,
        "decoder": 1_281_811,
        "reward": 197_119,
        "termination": 131_841,
    }


@pytest.mark.parametrize("num_actions, expected", [(6, 7_155_459), (18, 7_161_603)])
def test_published_parameters_in_total_golden(num_actions, expected):
    assert sum(_counts(num_actions).values()) == expected == 7_152_387 + 512 * num_actions


@pytest.mark.parametrize(
    "core, own, expected",
    [
        (mamba.Config(), 534_528 + 2 * (1_694_720 + 512) + 512, 7_343_459),
        (storm.Config(), 5_065_728, 8_483_683),
    ],
    ids=["mamba", "storm"],
)
def test_published_parameters_of_the_other_backbones_golden(core, own, expected):
    counts = _counts(18, core)
    assert counts["core"] == own
    assert sum(counts.values()) == expected


# ---------------------------------------------------------------------------------- reconstruction


def _reconstruction_loss(config, raw, observation):
    return reconstruction.loss(config.reconstruction, IMAGE, raw, observation)


@pytest.fixture(scope="module")
def image_drama(tiny_drama):
    return dataclasses.replace(tiny_drama, encoder=encoders.Image64(1), decoder=decoders.Image64(1))


@pytest.mark.parametrize(
    "kind, expected", [("sigmoid", 3072), ("squared", 0), ("bernoulli", 12_288 * np.log(2))]
)
def test_loss_of_a_zero_decoder_on_black_images(image_drama, kind, expected):
    config = dataclasses.replace(image_drama, reconstruction=kind)
    black = jnp.zeros((2, 3, *IMAGE.shape), jnp.uint8)
    loss = _reconstruction_loss(config, jnp.zeros(black.shape), black)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_white_is_255(image_drama):
    white = jnp.full((2, 3, *IMAGE.shape), 255, jnp.uint8)
    config = dataclasses.replace(image_drama, reconstruction="squared")
    assert _reconstruction_loss(config, jnp.ones(white.shape), white) == 0.0


# -------------------------------------------------------------------------------------------- loss

LENGTH = 6  # L; windows hold one row more
RESETS = ((3,), (LENGTH,), ())


@pytest.fixture(scope="module")
def system(tiny_drama, tiny_spec):
    """(model, state, key, batch): three windows, the last of which begins amid an episode."""
    config = dataclasses.replace(tiny_drama, representation_scale=0.0)
    model = config.make(tiny_spec)
    key = jax.random.key(0)
    windows = [
        testing.random_trajectory(tiny_spec, jax.random.fold_in(key, i), LENGTH + 1, resets)
        for i, resets in enumerate(RESETS)
    ]
    batch = jax.tree.map(lambda *x: jnp.stack(x), *windows)
    timestep = batch.timestep
    timestep = timestep._replace(is_first=timestep.is_first.at[-1, 0].set(False))
    return model, jax.jit(model.init)(key), jax.random.key(7), batch._replace(timestep=timestep)


@pytest.fixture(scope="module")
def losses(system):
    """Function (timesteps [K, B, L+1]) -> (losses [K], raw KL [K]) with the same key."""
    model, state, key, batch = system

    def one(timestep):
        total, (_, _, metrics) = model.loss(
            state.params, state.stats, key, batch._replace(timestep=timestep)
        )
        return total, metrics["model/kl"][0]

    return jax.jit(jax.vmap(one))


def _each_row(batch, name, change):
    """Timesteps [B · (L+1), B, L+1]: field `name` changed in one row each."""
    rows = np.eye(batch.timestep.reward.size, dtype=bool).reshape(-1, *batch.timestep.reward.shape)
    field = getattr(batch.timestep, name)
    mask = rows.reshape(rows.shape + (1,) * (field.ndim - 2))
    stacked = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(rows), *x.shape)), batch.timestep)
    return stacked._replace(**{name: jnp.where(mask, change(field), field)})


@pytest.fixture(scope="module")
def targets(system):
    """[B, L+1] bool: rows that something predicts."""
    is_first = np.asarray(system[3].timestep.is_first)
    predicted = ~is_first
    predicted[:, 0] = False  # nothing comes before the first row of a window
    return predicted


CHANGES = {"reward": lambda x: x + 3.0, "is_terminal": jnp.logical_not}


@pytest.mark.parametrize("name", CHANGES)
def test_the_loss_depends_on_this_field_of_predicted_rows_and_of_no_other(
    system, losses, targets, name
):
    batch = system[3]
    unchanged = jax.tree.map(lambda x: jnp.broadcast_to(x, (21, *x.shape)), batch.timestep)
    before, _ = losses(unchanged)
    after, _ = losses(_each_row(batch, name, CHANGES[name]))
    changed = (np.asarray(after) != np.asarray(before)).reshape(targets.shape)
    np.testing.assert_array_equal(changed, targets)


def test_the_kl_leaves_out_posteriors_of_first_rows(system, losses, targets):
    batch = system[3]
    unchanged = jax.tree.map(lambda x: jnp.broadcast_to(x, (21, *x.shape)), batch.timestep)
    _, before = losses(unchanged)
    _, after = losses(_each_row(batch, "observation", lambda x: x + 1.0))
    changed = (np.asarray(after) != np.asarray(before)).reshape(targets.shape)
    # Rows before the last also enter the prior of their successor.
    np.testing.assert_array_equal(changed[:, -1], targets[:, -1])


def test_the_scale_of_the_reward_counts_in_the_loss(tiny_drama, tiny_spec, system):
    _, state, key, batch = system

    def loss_of(scale):
        model = dataclasses.replace(tiny_drama, reward_scale=scale).make(tiny_spec)
        return jax.jit(model.loss)(state.params, state.stats, key, batch)

    plain, (_, _, metrics) = loss_of(1.0)
    np.testing.assert_allclose(loss_of(5.0)[0] - plain, 4 * metrics["model/reward"][0], 1e-4)


def test_latents_of_the_loss_are_those_of_observing_row_by_row(system):
    model, state, key, batch = system
    past = jax.tree.map(lambda x: x[:, :-1], batch)
    timestep = past.timestep  # a window's first row stands for a first row
    past = past._replace(timestep=timestep._replace(is_first=timestep.is_first.at[:, 0].set(True)))

    def observed(window_key, window):
        def body(loop, row):
            row_key, timestep, action = row
            latent = model.observe(state, row_key, loop[0], timestep, loop[1])
            return (latent, action), latent

        keys = jax.random.split(window_key, LENGTH + 1)[:-1]
        start = model.initial_latent(), zero_action(DiscreteSpec(2))
        return jax.lax.scan(body, start, (keys, window.timestep, window.action))[1]

    @jax.jit
    def both_ways():
        entries = model.loss(state.params, state.stats, key, batch)[1][0]
        rebuilt = jax.vmap(jax.vmap(model.latent_at, (None, 0)), (0, None))
        keys = jax.random.split(key, len(RESETS))
        return rebuilt(entries, jnp.arange(LENGTH)), jax.vmap(observed)(keys, past)

    actual, expected = both_ways()
    testing.assert_close(actual, expected, "L4 for the loss")


# --------------------------------------------------------------------------------------- gradients

# Straight-through gradients are none of the loss as it is sampled: what feeds the samples is left
# out of the comparison with differences.
SMOOTH = ("core", "prior", "reward", "termination", "decoder")


@pytest.fixture(scope="module")
def slopes(system):
    """By module: slope of the loss along a direction, by gradient and by central differences."""
    model, state, key, batch = system

    def objective(params):
        return model.loss(params, state.stats, key, batch)[0]

    def direction(gradient, name):
        flat, unflatten = jax.flatten_util.ravel_pytree(gradient[name])
        noise = jax.random.normal(jax.random.key(5), flat.shape)
        unit = flat / jnp.linalg.norm(flat) + noise / jnp.linalg.norm(noise)
        zeros = jax.tree.map(jnp.zeros_like, gradient)
        return zeros | {name: unflatten(unit)}

    @jax.jit
    def both_ways(params):
        gradient = jax.grad(objective)(params)
        directions = [direction(gradient, name) for name in SMOOTH]
        directions = jax.tree.map(lambda *x: jnp.stack(x), *directions)

        def compare(along):
            products = jax.tree.map(lambda g, d: (g * d).sum(), gradient, along)
            below, above = (
                objective(jax.tree.map(lambda p, d, h=step: p + h * d, params, along))
                for step in (-1e-2, 1e-2)
            )
            return sum(jax.tree.leaves(products)), (above - below) / 2e-2

        return jax.lax.map(compare, directions)

    return dict(zip(SMOOTH, zip(*both_ways(state.params), strict=True), strict=True))


@pytest.mark.parametrize("name", SMOOTH)
def test_gradient_agrees_with_central_differences(slopes, name):
    analytic, numeric = slopes[name]
    assert abs(analytic) > 0.05
    np.testing.assert_allclose(analytic, numeric, rtol=1e-2)


def test_every_prediction_trains_the_encoder_through_the_sample(system):
    model, state, key, batch = system
    names = ("reward", "termination", "dynamics", "reconstruction")

    def terms(encoder):
        params = state.params | {"encoder": encoder}
        metrics = model.loss(params, state.stats, key, batch)[1][2]
        return jnp.stack([metrics[f"model/{name}"][0] for name in names])

    jacobian = jax.jit(jax.jacrev(terms))(state.params["encoder"])
    largest = functools.reduce(
        np.maximum,
        [np.abs(leaf).reshape(len(names), -1).max(-1) for leaf in jax.tree.leaves(jacobian)],
    )
    assert (largest > 1e-5).all()


# ---------------------------------------------------------------------------------------- learning


def test_what_is_imagined_is_what_followed_the_action(tiny_drama, tiny_spec):
    config = dataclasses.replace(
        tiny_drama,
        core=gru.Config(width=8),
        reconstruction="bernoulli",
        optimiser=optim.Config("adam", 2e-2, warmup=0, eps=1e-8),
    )
    assert_followed(imagined(config.make(tiny_spec)))


# --------------------------------------------------------------------------------------- the record


def test_equal_configs_give_the_same_record(tiny_drama, tiny_spec):
    assert tiny_drama.make(tiny_spec) is dataclasses.replace(tiny_drama).make(tiny_spec)


def test_the_norm_of_the_gradient_is_reported(system):
    model, state, key, batch = system
    metrics = jax.eval_shape(model.update, state, key, batch)[2]
    assert "model/gradient_norm" in metrics  # freezing a broken seed needs it


def test_posterior_and_prior_heads_have_random_biases(system):
    _, state, _, _ = system
    for name in ("posterior", "prior"):
        bias = np.asarray(state.params[name]["Dense_0"]["bias"])
        assert 0.0 < np.abs(bias).max() <= 8**-0.5  # both read vectors of 8


def test_first_rows_forget_the_past(system):
    model, state, key, batch = system
    timestep = jax.tree.map(lambda x: x[0, 0], batch.timestep)
    used = jax.tree.map(lambda x: x + 1.0, model.initial_latent())
    latent = jax.jit(model.observe)(state, key, used, timestep, jnp.int32(1))
    assert not any(np.asarray(x).any() for x in jax.tree.leaves((latent.carry, latent.output)))


def test_reward_output_can_start_at_zero(tiny_drama, tiny_spec):
    model = dataclasses.replace(tiny_drama, zero_reward_output=True).make(tiny_spec)
    state = jax.jit(model.init)(jax.random.key(0))
    latent = model.initial_latent()._replace(output=jnp.arange(8.0))
    prediction = jax.jit(model.predict)(state, latent)
    np.testing.assert_allclose(prediction.reward, 0.0, atol=1e-6)


def test_symlog_reaches_what_the_encoder_reads_and_what_is_drawn(tiny_drama, tiny_spec):
    """A vector of thousands is read as its symlog; the mean of a decoder's x is symexp(x)."""
    spec = dataclasses.replace(tiny_spec, observation=ArraySpec((3,), "float32"))
    dense = {"encoder": encoders.Dense(8, 1), "decoder": decoders.Dense(8, 0)}
    models = {
        kind: dataclasses.replace(tiny_drama, reconstruction=kind, **dense).make(spec)
        for kind in ("squared", "symlog")
    }
    state = models["squared"].init(jax.random.key(0))
    parts = {kind: model.loss.args[0] for kind, model in models.items()}
    seen = jnp.array([-3e3, 0.0, 20.0])
    squeezed = jnp.sign(seen) * jnp.log1p(jnp.abs(seen))
    expected = drama.nets.posterior(parts["squared"], state.params, state.stats, squeezed, False)[0]
    found = drama.nets.posterior(parts["symlog"], state.params, state.stats, seen, False)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    latent = models["squared"].initial_latent()
    latent = latent._replace(sample=latent.sample.at[0].set(5.0))
    raw, drawn = (models[kind].decode(state, latent) for kind in ("squared", "symlog"))
    np.testing.assert_allclose(drawn, jnp.sign(raw) * jnp.expm1(jnp.abs(raw)), rtol=1e-5)
    assert jnp.abs(raw).min() > 0


@pytest.mark.parametrize("experiment", [drama_memory, r2i_memory], ids=["drama", "r2i"])
def test_rewards_begin_small_where_they_are_small(experiment):
    """Tasks of ±1: before anything was learned no more than a tenth is expected (once up to 47)."""
    system = build(experiment.get_experiment())
    model, latent = system.world_model, system.world_model.initial_latent()
    noise = jax.random.normal(jax.random.key(1), (64, latent.output.size))

    @jax.jit
    def rewards(key):
        state = model.init(key)
        seen = lambda output: latent._replace(output=output)  # noqa: E731
        return jax.vmap(lambda output: model.predict(state, seen(output)).reward)(noise)

    found = np.abs(rewards(jax.random.key(0)))
    assert 1e-4 < found.max() < 0.1


@pytest.mark.parametrize("hidden", ["rms_silu", "layer_relu"])
def test_a_gain_scales_what_the_reward_begins_with(tiny_drama, tiny_spec, hidden):
    def kernel(gain):
        config = dataclasses.replace(tiny_drama, head_hidden=hidden, reward_gain=gain)
        params = jax.jit(config.make(tiny_spec).init)(jax.random.key(0)).params["reward"]
        return params[f"Dense_{tiny_drama.head_layers}"]["kernel"]

    np.testing.assert_allclose(kernel(0.5), 0.5 * kernel(1.0), rtol=1e-4)
