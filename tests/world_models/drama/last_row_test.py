"""The last row of a training window: seen, or read for what the last action brought."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.cores import storm
from mbrl_jax.testing import random_trajectory

pytestmark = pytest.mark.usefixtures("quick_compile")
LENGTH = 6


@pytest.fixture(scope="module")
def windows(tiny_spec):
    """Two windows [2, LENGTH + 1] of one episode each; rewards that differ."""
    rows = [random_trajectory(tiny_spec, jax.random.key(i), LENGTH + 1, (0,)) for i in (0, 1)]
    rows = jax.tree.map(lambda *x: jnp.stack(x), *rows)
    reward = jnp.arange(2.0 * (LENGTH + 1)).reshape(2, -1)
    return rows._replace(timestep=rows.timestep._replace(reward=reward))


def _terms(settings, spec, rows):
    model = settings.make(spec)
    state = jax.jit(model.init)(jax.random.key(0))
    total, (entries, _, metrics) = jax.jit(model.loss)(
        state.params, state.stats, jax.random.key(1), rows
    )
    return {"loss": total} | {name: value for name, (value, _) in metrics.items()}, entries


def _arrival(settings):
    return dataclasses.replace(settings, last_row="arrival")


def test_only_reward_and_end_of_an_arrival_count(tiny_drama, tiny_spec, windows):
    """The rest of the loss is that of the rows before; entries are those of the first L rows."""
    arrival, entries = _terms(_arrival(tiny_drama), tiny_spec, windows)
    seen, fewer = _terms(tiny_drama, tiny_spec, jax.tree.map(lambda x: x[:, :-1], windows))
    for name in ("reconstruction", "dynamics", "representation", "kl", "posterior_entropy"):
        np.testing.assert_allclose(arrival[f"model/{name}"], seen[f"model/{name}"], rtol=1e-6)
    assert entries.outputs.shape[1] == LENGTH and fewer.outputs.shape[1] == LENGTH - 1
    np.testing.assert_allclose(entries.outputs[:, :-1], fewer.outputs, rtol=1e-5, atol=1e-6)


def test_the_mean_runs_over_as_many_rewards_as_frames(tiny_drama, tiny_spec, windows):
    """L rewards and ends in L frames; L - 1 where the last row is seen."""
    timestep = windows.timestep

    def reward_loss(settings, last):
        reward = timestep.reward.at[:, last].set(500.0)
        rows = windows._replace(timestep=timestep._replace(reward=reward))
        return float(_terms(settings, tiny_spec, rows)[0]["model/reward"])

    # The logits of a fresh model are all alike, so that all rewards cost the same.
    flat = dataclasses.replace(tiny_drama, zero_reward_output=True)
    for settings in (flat, _arrival(flat)):
        expected = np.log(flat.num_bins)
        assert reward_loss(settings, LENGTH) == pytest.approx(expected, rel=1e-5)
    moved = [reward_loss(_arrival(tiny_drama), row) for row in (LENGTH - 1, LENGTH)]
    assert moved[0] != moved[1]


def test_the_frame_of_an_arrival_is_not_looked_at(tiny_drama, tiny_spec, windows):
    timestep = windows.timestep
    other = timestep.observation.at[:, -1].add(0.5)
    changed = windows._replace(timestep=timestep._replace(observation=other))
    for settings, same in ((_arrival(tiny_drama), True), (tiny_drama, False)):
        before, after = (_terms(settings, tiny_spec, rows)[0] for rows in (windows, changed))
        assert (before["loss"] == after["loss"]) == same


def test_the_reward_of_an_arrival_is_learned(tiny_drama, tiny_spec, windows):
    timestep = windows.timestep
    richer = timestep._replace(
        reward=timestep.reward.at[:, -1].add(3.0),
        is_terminal=timestep.is_terminal.at[:, -1].set(True),
    )
    before, after = (
        _terms(_arrival(tiny_drama), tiny_spec, windows._replace(timestep=t))[0]
        for t in (timestep, richer)
    )
    assert before["model/reward"] != after["model/reward"]
    assert before["model/termination"] != after["model/termination"]
    assert before["model/kl"] == after["model/kl"]


def test_dropout_of_the_transformer_acts_in_training_alone(tiny_drama, tiny_spec, windows):
    core = storm.Config(width=8, layers=1, heads=2, window=8)
    plain = dataclasses.replace(tiny_drama, core=core)
    noisy = dataclasses.replace(plain, core=dataclasses.replace(core, dropout=0.3))
    losses = [_terms(settings, tiny_spec, windows)[0]["loss"] for settings in (plain, noisy)]
    assert losses[0] != losses[1]
    rows = jax.tree.map(lambda x: x[0], windows)
    outputs = []
    for settings in (plain, noisy):
        model = settings.make(tiny_spec)

        @jax.jit
        def look(key, model=model):
            state, start = model.init(key), model.initial_latent()
            return model.observe_sequence(state, key, start, jnp.int32(0), rows).outputs

        outputs.append(look(jax.random.key(0)))
    np.testing.assert_array_equal(*outputs)
