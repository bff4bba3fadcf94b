"""Craftax in our convention, against its own functions; ends for good apart from the time limit."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch import flags
from mbrl_jax.envs import brax, craftax
from mbrl_jax.types import ArraySpec, DiscreteSpec

CLASSIC = "Craftax-Classic-Symbolic-v1"


@pytest.mark.slow  # a minute: the world's generator takes long to compile
def test_rows_are_those_of_craftax_by_hand(quick_compile):
    pytest.importorskip("craftax")
    from craftax.craftax_env import make_craftax_env_from_name

    env = craftax.Config(CLASSIC, max_steps=4).make()
    assert (env.spec.observation, env.spec.action) == (
        ArraySpec((1345,), "float32"),
        DiscreteSpec(17),
    )
    bare = make_craftax_env_from_name(CLASSIC, auto_reset=False)
    params = bare.default_params
    reset, step = jax.jit(bare.reset_env), jax.jit(bare.step_env)
    ours = jax.jit(env.step)
    state, row = jax.jit(env.reset)(jax.random.key(0))
    seen, inner = reset(jax.random.key(0), params)
    for t in range(1, 12):
        key = jax.random.key(t)
        state, row = ours(state, key, jnp.int32(t))
        step_key, reset_key = jax.random.split(key)
        if t % 5 == 0:
            seen, inner = reset(reset_key, params)
            wanted = 0.0, True, False, False
        else:
            seen, inner, reward, done, _ = step(step_key, inner, t, params)
            assert not done
            wanted = reward, False, t % 5 == 4, False
        np.testing.assert_allclose(row.observation, seen, atol=1e-6)
        np.testing.assert_allclose(row.reward, wanted[0], atol=1e-6)
        assert tuple(map(bool, row[2:5])) == wanted[1:]
    dying = state._replace(inner=state.inner.replace(player_health=jnp.int32(-9)))
    _, row = ours(dying, jax.random.key(99), jnp.int32(0))
    assert bool(row.is_last) and bool(row.is_terminal)


@pytest.mark.parametrize("config", [craftax.Config(CLASSIC), brax.Config("fast")])
def test_without_the_library_its_extra_is_named(monkeypatch, config):
    library = type(config).__module__.rpartition(".")[2]
    monkeypatch.setitem(sys.modules, library, None)
    for name in [n for n in sys.modules if n.startswith(f"{library}.")]:
        monkeypatch.delitem(sys.modules, name)
    type(config).make.__globals__["make"].cache_clear()
    with pytest.raises(ValueError, match=rf"pip install 'mbrl_jax\[{library}\]'"):
        config.make()


def test_another_name_is_refused():
    with pytest.raises(ValueError, match="Craftax has .*Craftax-Classic-Symbolic-v1"):
        craftax.Config("Craftax-Classic-Symbolic-v2").make()
    found = flags.load_environment(f"craftax:{CLASSIC}")
    assert found == craftax.Config(CLASSIC) and found.comes_from == ("craftax",)
