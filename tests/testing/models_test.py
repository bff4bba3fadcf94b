"""Laws L4 to L6 and L9 of world models: the toy keeps them, and broken ones are found."""

import functools

import jax
import jax.numpy as jnp
import pytest

from mbrl_jax import testing
from mbrl_jax.testing import toys
from mbrl_jax.types import ArraySpec, BoundedSpec, DictSpec, DiscreteSpec, EnvSpec

pytestmark = pytest.mark.usefixtures("quick_compile")

SPEC = EnvSpec(ArraySpec((3,), "float32"), DiscreteSpec(2))
TOY = toys.Model()
MODEL = TOY.make(SPEC)
NAMED = DictSpec(
    (("camera", ArraySpec((2, 3, 1), "uint8")), ("action_mask", ArraySpec((2,), "bool")))
)


def _check(model):
    testing.check_world_model(model, SPEC, length=4)


@pytest.mark.parametrize(
    "config, spec",
    [
        (TOY, SPEC),
        (toys.Model(markov=True), EnvSpec(ArraySpec((2, 2), "uint8"), BoundedSpec(2))),
        (TOY, EnvSpec(NAMED, DiscreteSpec(2), extras=("cost",))),
    ],
    ids=["vectors", "markov", "named_leaves"],
)
def test_the_toy_keeps_the_laws(config, spec):
    testing.check_world_model(config, spec, length=4)


def test_a_model_without_a_decoder_keeps_the_laws():
    _check(MODEL._replace(decode=None))


# ----------------------------------------------------------------------------------- broken models


def _remembers(state, key, latent, timestep, prev_action):
    """Filters as if no row were the first of an episode."""
    return MODEL.observe(
        state, key, latent, timestep._replace(is_first=jnp.zeros((), bool)), prev_action
    )


def _detached(params, stats, key, batch):
    """Entries without a gradient."""
    loss, aux = MODEL.loss(params, stats, key, batch)
    return loss, jax.lax.stop_gradient(aux)


def _two_latents(state, key, batch):
    state, entries, metrics = MODEL.update(state, key, batch)
    return state, (entries, entries), metrics


def _unnamed(state, key, batch):
    state, entries, _ = MODEL.update(state, key, batch)
    return state, entries, {"loss": (1.0, 1.0)}


def _halved(state, key, batch):
    state, entries, metrics = MODEL.update(state, key, batch)
    return jax.tree.map(lambda x: x.astype(jnp.float16), state), entries, metrics


def _predict(state, latent):
    return MODEL.predict(state, latent)._replace(discount=1.0 + latent.z[0] ** 2)


BROKEN = {
    "a filter that remembers": ({"observe": _remembers}, "L4"),
    "row before": ({"latent_at": lambda entries, t: toys.latent_at(entries, t - 1)}, "L4"),
    "imagine": ({"imagine": lambda *args: toys.Latent(jnp.zeros(5))}, "L5 imagine"),
    "discount": ({"predict": _predict}, "L5 a discount"),
    "features": ({"features": lambda state, latent: latent.z[0]}, "L5 features"),
    "decode": ({"decode": lambda state, latent: latent.z}, "L5 decode"),
    "state": ({"update": _halved}, "L6 update keeps"),
    "entries": ({"update": _two_latents}, "(?i)latent|attribute"),
    "metrics": ({"update": _unnamed}, "group/name"),
    "further": ({"updates": {"clone": lambda state, *_: ((), {})}}, "L6 update 'clone'"),
    "detached": ({"loss": _detached}, "L9 features .* no gradient"),
    "constant": ({"decode": lambda state, latent: jnp.zeros(3)}, "L9 a decoder"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_models_are_found(name):
    changes, message = BROKEN[name]
    with pytest.raises((AssertionError, AttributeError), match=message):
        _check(MODEL._replace(**changes))


def test_features_that_do_not_depend_on_parameters_need_no_gradient():
    """Standardised observations, say: the loss's entries are observations."""

    def observe(state, key, latent, timestep, prev_action):
        del state, key, latent, prev_action
        return toys.Latent(jnp.append(timestep.observation, 1.0))

    def observe_sequence(state, key, latent, prev_action, trajectory):
        return jax.vmap(functools.partial(observe, state, key, latent), (0, None))(
            trajectory.timestep, prev_action
        )

    def loss(params, stats, key, batch):
        total, (entries, stats, metrics) = MODEL.loss(params, stats, key, batch)
        rows = jax.vmap(lambda rows: observe_sequence((), key, (), (), rows))(batch)
        entries = jax.tree.map(lambda x: x[:, :-1], rows)
        return total, (entries, stats, metrics)

    changes = {"observe": observe, "observe_sequence": observe_sequence, "loss": loss}
    _check(MODEL._replace(**changes))
