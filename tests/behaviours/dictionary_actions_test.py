"""Actions that are dictionaries: chosen by part, one vector to models, and run to the end."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import datasets, legal, optim
from mbrl_jax.behaviours import actor_critic, dreamer, ppo, sac, tdmpc
from mbrl_jax.behaviours.choices import choices_of
from mbrl_jax.datasets import flat
from mbrl_jax.envs import gymnasium
from mbrl_jax.envs import spec as specs
from mbrl_jax.envs.doctor import check
from mbrl_jax.envs.spec import make_environment
from mbrl_jax.experiment import config as configs
from mbrl_jax.export import loader
from mbrl_jax.export.archive import export_policy
from mbrl_jax.replay import ring
from mbrl_jax.testing import check_behaviour, check_replay
from mbrl_jax.train.run import run
from mbrl_jax.train.trained import load_policy
from mbrl_jax.types import (
    ArraySpec,
    BoundedSpec,
    BoundModel,
    DictActionSpec,
    DictSpec,
    DiscreteSpec,
    Environment,
    EnvSpec,
    MultiDiscreteSpec,
    Prediction,
    Starts,
)
from tests import signals, small
from tests.envs import by_hand

pytestmark = pytest.mark.usefixtures("quick_compile")

PARTS = {"force": BoundedSpec(2), "keys": MultiDiscreteSpec((2, 4)), "move": DiscreteSpec(3)}
SPEC = DictActionSpec(tuple(PARTS.items()))
VECTORS = EnvSpec(ArraySpec((3,), "float32"), SPEC)


@dataclasses.dataclass(frozen=True)
class Cart:
    """A cart that moves left, not at all or right, with a force; it should stand at 1.

    `masked`: it says that right is forbidden beyond 0.5 and left before that, and counts what is
    done all the same.
    """

    name: str = "cart"
    masked: bool = False

    def make(self) -> Environment:
        return make(self)


def make(config: Cart = Cart()) -> Environment:
    def allowed(place):
        return jnp.stack([place > 0.5, jnp.array(True), place <= 0.5])

    def see(place):
        seen = jnp.stack([place, jnp.abs(place - 1)])
        return {"seen": seen, "action_mask": allowed(place)} if config.masked else seen

    def reset(key):
        place = jax.random.uniform(key)
        return (place, jnp.int32(0)), see(place)

    def step(key, state, action):
        place = state[0] + (action["move"] - 1) * 0.3 * (1 + action["force"][0])
        t = state[1] + 1
        extras = {"illegal": ~allowed(state[0])[action["move"]]} if config.masked else {}
        return (place, t), see(place), -jnp.abs(place - 1), False, t == 6, extras

    action = DictActionSpec((("move", DiscreteSpec(3)), ("force", BoundedSpec(1))))
    return make_environment(action, reset, step, extras=("illegal",) * config.masked)


# ------------------------------------------------------------------------------------- the parts


def test_a_spec_is_hashable_sorted_and_of_parts_alone():
    assert hash(SPEC) == hash(DictActionSpec(tuple(reversed(PARTS.items()))))
    for leaves in ((), (("a", DiscreteSpec(2)),) * 2):
        with pytest.raises(ValueError, match="at least one action, each with its own name"):
            DictActionSpec(leaves)
    with pytest.raises(ValueError, match="'a' is no DiscreteSpec.*without others inside"):
        DictActionSpec((("a", SPEC),))
    with pytest.raises(ValueError, match="nothing to choose"):
        specs.require_sized(
            EnvSpec(VECTORS.observation, DictActionSpec((("a", MultiDiscreteSpec((2, 0))),)))
        )


def test_vectors_stand_one_behind_the_other_and_come_back():
    action = {"move": jnp.int32(2), "force": jnp.array([0.5, -1.0]), "keys": jnp.array([1, 3])}
    vector = specs.action_vector(SPEC, action)
    wanted = [0.5, -1.0, 0, 1, 0, 0, 0, 1, 0, 0, 1]
    np.testing.assert_array_equal(vector, wanted)
    assert specs.action_size(SPEC) == len(wanted)
    back = specs.action_of_vector(SPEC, vector)
    jax.tree.map(np.testing.assert_array_equal, back, action)
    drawn = jax.vmap(lambda key: specs.random_action(SPEC, key))(
        jax.random.split(jax.random.key(0), 500)
    )
    like = jax.tree.map(lambda x: (x.shape, str(x.dtype)), specs.zero_action(SPEC))
    assert like == jax.tree.map(lambda x: (x.shape[1:], str(x.dtype)), drawn)
    assert set(np.unique(drawn["move"])) == {0, 1, 2}
    # Parts are drawn apart from each other.
    assert abs(np.corrcoef(drawn["keys"][:, 0], drawn["move"])[0, 1]) < 0.15


@pytest.mark.parametrize("real", ["bounded_normal", "tanh_normal"])
def test_choices_are_those_of_the_parts(real):
    whole = choices_of(SPEC, real)
    parts = {name: choices_of(leaf, real) for name, leaf in PARTS.items()}
    raw = jax.random.normal(jax.random.key(0), (5, whole.size))
    pieces = jnp.split(raw, [4, 10], axis=-1)
    alone = {n: p.read(x) for (n, p), x in zip(parts.items(), pieces, strict=True)}
    distribution = whole.read(raw)
    keys = jax.random.split(jax.random.key(1), 5)
    choice = jax.vmap(whole.sample)(keys, distribution)
    by_part = jax.vmap(lambda k: jax.random.split(k, 3))(keys)
    for i, (name, part) in enumerate(parts.items()):
        drawn = jax.vmap(part.sample)(by_part[:, i], alone[name])
        np.testing.assert_array_equal(choice[name], drawn)
        np.testing.assert_array_equal(whole.mode(distribution)[name], part.mode(alone[name]))
        np.testing.assert_array_equal(whole.action(choice)[name], part.action(drawn))
    for what in ("log_prob", "entropy"):
        sums = sum(getattr(p, what)(alone[n], choice[n]) for n, p in parts.items())
        found = getattr(whole, what)(distribution, choice)
        assert found.shape == (5,)
        np.testing.assert_allclose(found, sums, rtol=1e-6)


def test_a_mask_speaks_of_the_discrete_parts_alone():
    legal.require_mask(EnvSpec(DictSpec((("action_mask", ArraySpec((9,), "bool")),)), SPEC))
    mask = jnp.array([0, 1, 1, 0, 0, 1, 1, 0, 1], bool)  # of keys: 1; 0, 3. Of move: 0, 2
    assert legal.of_parts(SPEC, None) == [None] * 3
    none, keys, move = legal.of_parts(SPEC, mask)
    assert none is None and keys.tolist() == mask[:6].tolist() and move.tolist() == [1, 0, 1]
    whole, raw = choices_of(SPEC), jax.random.normal(jax.random.key(0), (13,))
    assert whole.options == 9
    found = whole.read(raw, mask)
    jax.tree.map(np.testing.assert_array_equal, found["force"], whole.read(raw)["force"])
    for name, own, piece in (("keys", keys, raw[4:10]), ("move", move, raw[10:])):
        wanted = choices_of(PARTS[name]).read(piece, own)
        jax.tree.map(np.testing.assert_array_equal, found[name], wanted)
    random = lambda key: specs.random_action(SPEC, key, mask)  # noqa: E731
    drawn = jax.jit(jax.vmap(random))(jax.random.split(jax.random.key(1), 400))
    assert np.unique(drawn["keys"], axis=0).tolist() == [[1, 0], [1, 3]]
    assert set(np.unique(drawn["move"])) == {0, 2}
    assert drawn["force"].min() < -0.9 and drawn["force"].max() > 0.9
    said = Prediction(0, 0, {"action_mask": jnp.where(mask, 0.9, 0.2).at[6:].set(0.3)})
    assert legal.expected(SPEC, said).tolist() == [*mask[:6].tolist(), *[True] * 3]


def test_real_parts_beside_a_mask_of_another_size_are_refused():
    seen = DictSpec((("action_mask", ArraySpec((3,), "bool")), ("x", ArraySpec((2,), "float32"))))
    with pytest.raises(ValueError, match=r"has to be bool\[9\]: one value for each option of its"):
        actor_critic.Config().make(EnvSpec(seen, SPEC))


# ------------------------------------------------------------------------------------- behaviours


def bandit(pay):
    """A model of one step: the latent is the reward of the action."""
    return BoundModel(
        initial_latent=lambda: jnp.zeros(()),
        imagine=lambda key, latent, action: pay(action),
        predict=lambda latent: Prediction(latent, jnp.ones(()), {}),
        features=lambda latent: jnp.zeros((3,)) + 0.0 * latent,
        **dict.fromkeys(("observe", "observe_sequence", "latent_at", "decode")),
    )


def paid(action):
    """Most for move 2 and real numbers of 0.5."""
    near = {name: -jnp.square(x - 0.5).sum() for name, x in action.items() if name != "move"}
    return sum(near.values()) + (1.0 * (action["move"] == 2) if "move" in action else 0.0)


@pytest.mark.parametrize(
    ("module", "options", "kinds"),
    [
        (actor_critic, {}, {"move": DiscreteSpec(3), "force": BoundedSpec(1)}),
        (ppo, {"num_minibatches": 2}, {"move": DiscreteSpec(3), "force": BoundedSpec(1)}),
        (actor_critic, {"gradient": "dynamics"}, {"a": BoundedSpec(1), "b": BoundedSpec(2)}),
    ],
)
def test_actors_find_what_is_paid_in_every_part(module, options, kinds):
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
    spec = EnvSpec(ArraySpec((3,), "float32"), DictActionSpec(tuple(kinds.items())))
    behaviour, model = config.make(spec), bandit(paid)
    starts = Starts(jnp.zeros((64,)), jnp.ones((64,)))

    def step(state, key):
        return behaviour.update(state, key, model, starts, None, jnp.uint32(0))[0], ()

    keys = jax.random.split(jax.random.key(1), 200)
    state = behaviour.init(jax.random.key(0), jnp.zeros((3,)))
    state = jax.jit(lambda s: jax.lax.scan(step, s, keys)[0])(state)
    _, action = behaviour.act(state, jax.random.key(2), (), jnp.zeros(()), model, explore=False)
    assert set(action) == set(kinds)
    for name, x in action.items():
        np.testing.assert_allclose(x, 2 if name == "move" else 0.5, atol=0.2)


@pytest.mark.parametrize("module", [actor_critic, dreamer])
def test_behaviours_keep_their_laws(module):
    check_behaviour(module.Config(2, 8, 8, 1, num_bins=9), VECTORS)


def test_a_replay_keeps_its_laws():
    check_replay(ring.Config(capacity=64, batch_size=4, length=4), VECTORS)


def test_what_cannot_choose_dictionaries_says_what_can():
    for config in (sac.Config(), tdmpc.Config()):
        with pytest.raises(ValueError, match="needs bounded real actions.*behaviour=actor_critic"):
            config.make(VECTORS)
    with pytest.raises(ValueError, match="gradient=reinforce"):
        actor_critic.Config(gradient="dynamics").make(VECTORS)
    climbing = ["behaviour=planning", "behaviour.planner=gradient"]
    planned = configs.override(small.catch(), climbing).behaviour
    with pytest.raises(ValueError, match="planner=cem"):
        planned.make(VECTORS)


# ------------------------------------------------------------------------------------ whole runs


def test_the_doctor_plays_with_all_parts():
    findings = check(make())
    assert not [f.sentence for f in findings if f.severity == "error"]
    said = [f.sentence for f in findings if f.topic == "action"]
    assert said[:2] == [
        "force: there are 1 numbers between -1 and 1 as action",
        "move: there are 3 discrete actions",
    ]
    assert said[2:] == ["actions change what follows"]


def test_no_forbidden_move_is_made_by_chance_by_policy_or_greedily():
    experiment = dataclasses.replace(small.catch(), env=Cart(masked=True))
    experiment = configs.override(experiment, [*signals.AUTO, "num_envs=4"])
    signals.assert_legal(experiment, episodes=16)
    assert not [f.sentence for f in check(make(Cart(masked=True))) if f.severity == "error"]


def test_a_run_trains_evaluates_and_leaves_a_policy(tmp_path):
    experiment = dataclasses.replace(small.catch(), env=Cart())
    experiment = configs.override(experiment, ["model.reconstruction=squared"])
    run(experiment, tmp_path / "run")
    found = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert np.isfinite(found["returns"]).all()
    policy, carry = load_policy(tmp_path / "run")
    export_policy(tmp_path / "run", tmp_path / "policy.zip")
    alone = loader.load(str(tmp_path / "policy.zip"))
    assert sorted(alone.spec["action"]["leaves"]) == ["force", "move"]
    env = make()
    state, timestep = env.reset(jax.random.key(7))
    kept = alone.start(seed=3)
    key = jax.random.wrap_key_data(np.array([0, 3], np.uint32), impl="threefry2x32")
    for t in range(4):
        key, use = jax.random.split(key)
        carry, action = policy(use, carry, timestep)
        given = np.asarray(timestep.observation), bool(timestep.is_first), float(timestep.reward)
        kept, again = alone.step(kept, *given)
        assert sorted(again) == ["force", "move"]
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), again, action)
        state, timestep = env.step(state, jax.random.key(t), action)


def test_lanes_on_the_host_and_the_rows_that_they_leave(tmp_path):
    env = gymnasium.Config(f"{by_hand.__name__}:Arms", max_steps=6, processes=False)
    experiment = dataclasses.replace(small.catch_with_ppo(), env=env)
    experiment = configs.override(experiment, ["model.reconstruction=squared"])
    run(experiment, tmp_path / "run")
    found = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert found["finished"] == [2]
    assert not [f.sentence for f in check(env, steps=100) if f.severity == "error"]
    rows = datasets.load(datasets.Config(str(tmp_path / "run")), env.make().spec)
    # What the environment shows is the action before it.
    seen = rows.timestep.observation[1:]
    here = ~rows.timestep.is_first[1:]
    force, side = rows.action["arms.0"][:-1], rows.action["arms.1"][:-1]
    assert here.sum() > 20
    np.testing.assert_allclose(seen[here, 2:4], 5 * force[here] + 5, atol=1e-5)
    np.testing.assert_array_equal(seen[here, 4], side[here] - 1)
    np.testing.assert_array_equal(seen[here, :2], rows.action["move"][:-1][here])
    with pytest.raises(ValueError, match="flat files hold one array of actions"):
        flat.save_npz(rows, tmp_path / "rows.npz")
