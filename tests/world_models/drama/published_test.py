"""The converter: every net of a random published checkpoint equals its NumPy evaluation.

Sizes and names: shared/specs/drama.md sections 2 to 5 and 7.1.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import drama_atari100k
from mbrl_jax import testing
from mbrl_jax.behaviours import ppo
from mbrl_jax.cores import gru, mamba, mamba2, storm
from mbrl_jax.errors import ConfigError
from mbrl_jax.experiment.experiment import with_settings
from mbrl_jax.types import DiscreteSpec, bind
from mbrl_jax.world_models import drama
from mbrl_jax.world_models.drama import nets
from mbrl_jax.world_models.drama.published_files import load_published, load_published_agent
from tests.world_models.drama import published_layout as layout

pytestmark = pytest.mark.usefixtures("quick_compile")

ACTIONS = 6
BACKBONES = {
    "Mamba2": (mamba2.Config(), 7_155_459),
    "Mamba": (mamba.Config(), 7_343_459 - 512 * 12),
    "Transformer": (storm.Config(dropout=0.1), 8_483_683 - 512 * 12),
}
TOLERANCE = 1e-4


@functools.cache
def _case(backbone):
    """(checkpoint, what was loaded)."""
    checkpoint = layout.world_model(backbone, ACTIONS)
    return checkpoint, load_published(checkpoint)


def _close(actual, expected, message):
    testing.assert_close(actual, expected, message, TOLERANCE)
    assert np.abs(expected).max() > 0.1, "nothing to compare"


def _samples(num):
    """One-hot samples [num, 1024]."""
    index = np.random.default_rng(1).integers(0, 32, (num, 32))
    return np.eye(32, dtype=np.float32)[index].reshape(num, 1024)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_backbone_actions_and_sizes_are_recognised(backbone):
    checkpoint, published = _case(backbone)
    core, expected = BACKBONES[backbone]
    assert published.config.core == core
    assert published.spec.action == DiscreteSpec(ACTIONS) and published.spec.seam == "merged"
    assert sum(x.size for x in jax.tree.leaves(published.state.params)) == expected
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    trained = sum(x.size for name, x in checkpoint.items() if not name.endswith(statistics))
    assert trained == expected


@pytest.mark.parametrize("backbone", BACKBONES)
def test_configs_are_those_of_the_published_experiment(backbone):
    """`boundaries`, the buffer, the last row, and what the behaviour learns from."""
    _, published = _case(backbone)
    core = published.config.core
    name = type(core).__module__.split(".")[-1]
    trained = with_settings(drama_atari100k.get_experiment(), [f"model.core={name}"])
    assert published.config == dataclasses.replace(trained.model, core=core)
    chunk = getattr(trained.model.core, "chunk_size", None)  # speed alone
    assert trained.model.core == (dataclasses.replace(core, chunk_size=chunk) if chunk else core)
    assert published.behaviour == trained.behaviour
    assert published.spec.seam == trained.env.protocol.seam


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_state_is_one_of_the_model(backbone):
    _, (config, spec, state) = _case(backbone)
    template = jax.eval_shape(config.make(spec).init, jax.random.key(0))
    describe = functools.partial(jax.tree.map, lambda x: (x.shape, x.dtype))
    assert describe(state) == describe(template)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("way", ["step", "unroll"])
def test_core_and_prior(backbone, way):
    checkpoint, (config, spec, state) = _case(backbone)
    parts = nets.make_parts(config, spec)
    xs = np.concatenate([_samples(9), np.eye(ACTIONS, dtype=np.float32)[np.arange(9) % 6]], 1)

    @jax.jit
    def run(params, xs):
        if way == "unroll":
            outputs = parts.core.unroll(params["core"], None, xs, jnp.zeros(9, bool))[1]
        else:
            step = lambda carry, x: parts.core.step(params["core"], carry, x, None)  # noqa: E731
            _, outputs = jax.lax.scan(step, parts.core.initial_carry(), xs)
        return outputs, nets.prior(parts, params, outputs)

    outputs, log_probs = run(state.params, xs)
    expected = layout.core(checkpoint, backbone, xs.astype(np.float64))
    _close(outputs, expected, "core")
    _close(log_probs, layout.prior(checkpoint, expected), "prior")


def test_encoder_and_posterior():
    """Frames are channel-last here; the flattened map is channel-first on both sides."""
    checkpoint, (config, spec, state) = _case("Mamba2")
    parts = nets.make_parts(config, spec)
    frames = np.random.default_rng(2).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    encode = jax.jit(lambda s, x: nets.posterior(parts, s.params, s.stats, x, False))
    expected = layout.posterior(checkpoint, frames.transpose(0, 3, 1, 2) / 255.0)
    _close(encode(state, frames)[0], expected, "posterior")


def test_decoder():
    checkpoint, (config, spec, state) = _case("Mamba2")
    model, z = config.make(spec), _samples(2)

    @jax.jit
    def decode(state, z):
        latent = model.initial_latent()
        return jax.vmap(lambda z: model.decode(state, latent._replace(sample=z)))(z)

    expected = layout.decode(checkpoint, z.astype(np.float64)).transpose(0, 2, 3, 1)
    _close(decode(state, z), expected, "decoder")


def test_reward_and_termination():
    checkpoint, (config, spec, state) = _case("Mamba2")
    model, d = config.make(spec), np.random.default_rng(3).normal(size=(5, 512))

    @jax.jit
    def predict(state, d):
        latent = model.initial_latent()
        return jax.vmap(lambda d: model.predict(state, latent._replace(output=d)))(d)

    prediction = predict(state, d.astype(np.float32))
    logits = layout.head(checkpoint, "reward_decoder", d)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    mean = (p / p.sum(-1, keepdims=True)) @ np.linspace(-20, 20, 255)
    _close(prediction.reward, np.sign(mean) * np.expm1(np.abs(mean)), "reward")
    logit = layout.head(checkpoint, "termination_decoder", d)[:, 0]
    _close(prediction.discount, 1 / (1 + np.exp(logit)), "termination")


@pytest.mark.parametrize("config", [None, ppo.Config()], ids=["actor_critic", "ppo"])
def test_agent(config):
    _, published = _case("Mamba2")
    checkpoint = layout.agent(ACTIONS)
    state = load_published_agent(checkpoint, published, config)
    behaviour = (config or published.behaviour).make(published.spec)
    assert (state.stats.features == ()) == (config is not None)  # published: a normaliser, empty
    parts, x = behaviour.update.args[0], np.random.default_rng(4).normal(size=(4, 1536))
    small = x.astype(np.float32)
    for name, net, params, first in (
        ("actor", parts.actor, state.params["actor"], 1),
        ("critic", parts.critic, state.params["critic"], 0),
        ("slow_critic", parts.critic, state.stats.target_critic, 0),
    ):
        logits = jax.jit(net.apply)({"params": params}, small)
        _close(logits, layout.sequential(checkpoint, name, x, first), name)
    model = bind(published.config.make(published.spec), published.state)
    latent = model.initial_latent()._replace(sample=small[0, :1024], output=small[0, 1024:])
    _, action = behaviour.act(state, jax.random.key(0), (), latent, model, explore=False)
    assert action == layout.sequential(checkpoint, "actor", x, 1)[0].argmax()


# ------------------------------------------------------------------------------------- other facts


def test_names_of_a_compiled_model_are_read():
    """`torch.compile`, which the published programs call, puts a word before each name."""
    checkpoint, published = _case("Mamba2")
    compiled = {f"_orig_mod.{name}": tensor for name, tensor in checkpoint.items()}
    state = load_published(compiled).state
    jax.tree.map(np.testing.assert_array_equal, state, published.state)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda c: c.pop("dist_head.post_head.bias"), "has no 'dist_head.post_head.bias'"),
        (lambda c: c.update(more=np.zeros(3)), "does not have, such as 'more'"),
        (
            lambda c: c.update({"dist_head.prior_head.weight": np.zeros((1024, 256))}),
            r"params\['prior'\].*\(256, 1024\) in this state dict, and \(512, 1024\)",
        ),
    ],
)
def test_other_state_dicts_are_refused(change, sentence):
    tensors = dict(_case("Mamba2")[0])
    change(tensors)
    with pytest.raises(ConfigError, match=sentence):
        load_published(tensors)


@pytest.mark.parametrize(
    "core, sentence",
    [
        (gru.Config(), "the published cores are mamba2, mamba and storm"),
        (mamba.Config(), "or of another backbone than the config's"),
        (mamba2.Config(layers=1), "tensors that the published model does not have"),
    ],
)
def test_configs_that_do_not_fit_are_refused(core, sentence):
    with pytest.raises(ConfigError, match=sentence):
        load_published(_case("Mamba2")[0], drama.Config(core=core))


def test_an_agent_of_other_actions_is_refused():
    with pytest.raises(ConfigError, match=r"\(18,\) in this state dict, and \(6,\)"):
        load_published_agent(layout.agent(18), _case("Mamba2")[1])


def test_a_world_model_is_no_agent():
    checkpoint, published = _case("Mamba2")
    with pytest.raises(ConfigError, match="has no 'actor.1.weight'"):
        load_published_agent(checkpoint, published)
