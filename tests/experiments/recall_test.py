"""The recall study: its walks, its scores, what cores have in common, and the table."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.studies import recall
from mbrl_jax.cores import gru

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.mark.parametrize("delay", [1, 9])
def test_walks_come_back_after_the_delay(delay):
    walks = jax.jit(lambda keys: jax.vmap(recall.walk, (0, None))(keys, delay))(
        jax.random.split(jax.random.key(0), 64)
    )
    pictures, actions, rooms = map(np.asarray, walks)
    first = rooms[:, :1]
    home = np.ones(recall.LOOK + delay + 1, bool)
    home[recall.LOOK : recall.LOOK + delay] = False
    np.testing.assert_array_equal(rooms == first, np.broadcast_to(home, rooms.shape))
    assert set(first.ravel()) == {0, 1}
    objects = pictures[..., 1:]
    for t in range(home.size):
        known = objects[:, 0] if home[t] else objects[:, recall.LOOK]
        np.testing.assert_array_equal(objects[:, t], known)
    assert (objects[:, 0] != objects[:, recall.LOOK]).any((1, 2, 3)).mean() > 0.9
    # One agent in a place, and it walks: nobody jumps but through the door.
    assert (pictures[..., 0].sum((2, 3)) == 1).all()
    agents = np.stack(np.nonzero(pictures[..., 0])[2:], -1).reshape(*rooms.shape, 2)
    jumps = np.abs(np.diff(agents, axis=1)).sum(-1)
    assert (jumps[rooms[:, 1:] == rooms[:, :-1]] <= 1).all()
    assert (jumps[:, recall.LOOK - 1] == recall.ROOMS.size - 1).all()
    assert len(np.unique(actions[:, : recall.LOOK - 1])) == 5  # a walk, not a way


def test_scores_of_drawings_that_are_known():
    wanted = np.zeros((2, 5, 5, 5), bool)
    wanted[0, 1, 2, 3] = wanted[0, 4, 4, 1] = wanted[1, 0, 0, 2] = wanted[1, 3, 3, 4] = True
    wanted[:, 2, 2, 0] = True
    right = jnp.where(wanted, 9.0, -9.0)
    assert [float(x) for x in recall.scores(right, wanted)] == pytest.approx([1, 1, 0], abs=1e-5)
    nothing = jnp.full(wanted.shape, -9.0)
    np.testing.assert_allclose(recall.scores(nothing, wanted), [0, 0, 4 / 200], atol=1e-5)
    # The agent is not judged; one object in another colour, and one where there is none.
    drawn = right.at[..., 0].set(0.0).at[0, 1, 2, 4].set(10.0).at[1, 4, 0, 1].set(9.0)
    np.testing.assert_allclose(recall.scores(drawn, wanted), [0.75, 0, 2 / 200], atol=1e-5)
    everything = jnp.full(wanted.shape, 0.0)  # not more likely than not
    assert float(recall.scores(everything, wanted)[0]) == 0


def test_half_of_the_loss_is_the_room_that_is_come_back_to():
    core = gru.Config(4).make(130)
    params = jax.jit(lambda key: recall.init(core, key))(jax.random.key(0))
    walks = jax.jit(lambda keys: jax.vmap(recall.walk, (0, None))(keys, 2))(
        jax.random.split(jax.random.key(1), 2)
    )
    logits = np.asarray(jax.jit(lambda p: recall.draw(core, p, walks))(params), np.float64)
    seen = np.asarray(walks.pictures[:, 1:])
    errors = np.log1p(np.exp(np.where(seen, -logits, logits))).sum((2, 3, 4)).mean(0)
    found = jax.jit(lambda p: recall.loss(core, p, walks))(params)
    assert float(found) == pytest.approx((errors[-1] + errors.mean()) / 2, rel=1e-5)


def test_cores_have_equally_many_parameters():
    for name in recall.CORES:
        assert recall.num_parameters(name) == pytest.approx(recall.PARAMETERS, rel=0.05), name


@pytest.mark.slow
@pytest.mark.parametrize("name", recall.CORES)
def test_every_core_runs(name):
    recall.measure(name, 4, [0], recall.Sizes(1, 2, 2))


def test_the_table_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    made = []

    def measure(name, delay, seeds, sizes):
        made.append((name, delay, seeds, sizes))
        return [
            dict(zip(recall.COLUMNS, (name, delay, s, 0.5, 0, 0.1, 9, sizes.updates), strict=True))
            for s in seeds
        ]

    monkeypatch.setattr(recall, "measure", measure)
    out = tmp_path / "recall.csv"

    def run(**settings):
        made.clear()
        with monkeypatch.context() as patch:
            for name, value in {"cores": ["gru"], "out": str(out), **settings}.items():
                patch.setattr(recall.FLAGS[name], "value", value)
            recall.main([])

    recall.FLAGS.mark_as_parsed()
    run(delays=["16"], updates=7)
    assert made == [("gru", 16, [0, 1, 2], recall.Sizes(7))]
    run(delays=["16", "32"], updates=7)
    assert [row[1] for row in made] == [32]
    run(delays=["16"], updates=8)  # other updates: trained again, and the old rows leave
    rows = recall.read(out)
    assert [(r["delay"], r["updates"]) for r in rows] == [("32", "7")] * 3 + [("16", "8")] * 3
    run(debug=True)
    assert made == [("gru", 8, [0], recall.Sizes(3, 2, 2))]
    assert "gru  8  0  0.5" in capsys.readouterr().out


def test_seeds_in_one_program_are_as_alone(monkeypatch):
    small = dataclasses.replace(recall.CORES["gru"], width=8, layers=1)
    monkeypatch.setitem(recall.CORES, "gru", small)
    sizes = recall.Sizes(2, 2, 2)
    both = recall.measure("gru", 3, [4, 5], sizes)
    alone = recall.measure("gru", 3, [5], sizes)
    assert both[1]["mse"] == pytest.approx(alone[0]["mse"], rel=1e-4)
    assert [row["seed"] for row in both] == [4, 5] and set(both[0]) == set(recall.COLUMNS)
