"""The doctor finds what is wrong with environments broken on purpose, and nothing else."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.envs import doctor, probe
from mbrl_jax.envs.spec import make_environment
from mbrl_jax.types import ArraySpec, BoundedSpec, DiscreteSpec, EnvSpec

pytestmark = pytest.mark.usefixtures("quick_compile")


def walk(limit=4, *, start=jax.random.uniform, change=None, terminal=False, spec=None):
    """A walk on a line: state (where, count), cut or ended after `limit` steps.

    `change` gets what a step gives, (state, observation, reward, terminated, truncated), and the
    key; it may spoil it.
    """

    def reset_inner(key):
        where = start(key)
        return (where, 0), jnp.array([where, 0.0])

    def step_inner(key, state, action):
        where, count = state[0] + 0.1 * action.sum(), state[1] + 1
        over = count >= limit
        row = ((where, count), jnp.array([where, count / limit]), where, over & terminal, over)
        return row if change is None else change(row, key)

    return make_environment(spec or DiscreteSpec(3), reset_inner, step_inner)


def spoilt(change, **options):
    """The walk, with every finished timestep of a step given to `change`."""
    env = walk(**options)

    def step(state, key, action):
        after, timestep = env.step(state, key, action)
        return after, change(timestep)

    return env._replace(step=step)


def with_first(change):
    """The walk, with what reset shows changed too."""
    env = spoilt(change)

    def reset(key):
        state, timestep = env.reset(key)
        return state, change(timestep)

    return env._replace(reset=reset)


def set_in(row, place, value):
    """`row` with one entry replaced."""
    return (*row[:place], value, *row[place + 1 :])


def reset_itself(row, key, start):
    """An environment that shows the first observation of the next episode as the last one."""
    where = start(key)
    fresh = jnp.array([where, 0.0])
    return set_in(row, 1, jnp.where(row[4], fresh, row[1]))


def depends_on_last_action():
    env = walk()

    def step(state, key, action):
        after, timestep = env.step(state, key, action)
        seen = timestep.observation + action * timestep.is_first
        return after, timestep._replace(observation=seen)

    return env._replace(step=step)


def changes_its_state():
    env = walk()

    def step(state, key, action):
        after, timestep = env.step(state, key, action)
        return after._replace(inner=(after.inner[0], after.inner[1] * 1.0)), timestep

    return env._replace(step=step)


def drawn_by_numpy(row, key):
    del key
    return set_in(row, 2, row[2] + np.random.default_rng().random())


COUNTER = itertools.count()


def counted_by_python(row, key):
    del key
    return set_in(row, 2, row[2] + float(next(COUNTER)))


def asks_a_traced_value(row, key):
    del key
    return row if row[0][0] > 0 else set_in(row, 2, 0.0)


def through_numpy(function):
    """Rewards from a callback to NumPy, which sees all lanes at once."""

    def change(row, key):
        del key
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        return set_in(row, 2, jax.pure_callback(function, shape, row[2], vmap_method="expand_dims"))

    return change


def sum_of_all(reward):
    return np.broadcast_to(np.sum(reward, dtype=np.float32), np.shape(reward))


def fails(reward):
    raise RuntimeError("out of order")


def replace(**values):
    """A change of timesteps: fields from functions of the timestep."""
    return lambda t: t._replace(**{name: value(t) for name, value in values.items()})


def zero(key):
    del key
    return 0.0


no = lambda t: jnp.zeros((), bool)
BROKEN = {
    "nan_observation": (
        lambda: spoilt(replace(observation=lambda t: t.observation / (t.reward * 0))),
        ("error", "observations", "not finite"),
    ),
    "nan_reward": (
        lambda: spoilt(replace(reward=lambda t: jnp.log(-1.0 - t.reward))),
        ("error", "rewards", "not finite"),
    ),
    "huge_reward": (
        lambda: spoilt(replace(reward=lambda t: t.reward * 1e6)),
        ("warning", "rewards", "divide"),
    ),
    "no_reward": (
        lambda: spoilt(replace(reward=lambda t: t.reward * 0)),
        ("warning", "rewards", "no reward but 0"),
    ),
    "reward_of_a_reset": (
        lambda: spoilt(replace(reward=lambda t: t.reward + 1)),
        ("error", "rewards", "first rows carry a reward"),
    ),
    "endless": (lambda: walk(1000), ("warning", "episodes", "no episode ended within 60")),
    "one_step": (lambda: walk(1), ("warning", "one-step episodes", "take one step")),
    "zero_length": (
        lambda: with_first(replace(is_last=lambda t: t.is_last | t.is_first)),
        ("error", "zero-length episodes", "at once"),
    ),
    "no_first_row_after_the_last": (
        lambda: spoilt(replace(is_first=no)),
        ("error", "end flags", "a row after is_last is not is_first"),
    ),
    "a_first_row_from_nowhere": (
        lambda: spoilt(replace(is_last=no)),
        ("error", "end flags", "the one before it was not is_last"),
    ),
    "the_first_row_is_none": (
        lambda: with_first(replace(is_first=no)),
        ("error", "end flags", "after a reset is not is_first"),
    ),
    "terminal_where_it_begins": (
        lambda: spoilt(replace(is_terminal=lambda t: t.is_terminal | t.is_first)),
        ("error", "end flags", "belongs to the last row"),
    ),
    "time_limit_as_terminal": (
        lambda: walk(20, terminal=True),
        ("warning", "episodes", "after exactly 20 steps"),
    ),
    "last_observation_of_a_random_reset": (
        lambda: walk(change=lambda row, key: reset_itself(row, key, jax.random.uniform)),
        ("error", "last observation", "made by a reset"),
    ),
    "last_observation_of_a_fixed_reset": (
        lambda: walk(start=zero, change=lambda row, key: reset_itself(row, key, zero)),
        ("warning", "last observation", "that it began with"),
    ),
    "numpy_draws": (lambda: walk(change=drawn_by_numpy), ("error", "determinism", "second time")),
    "python_counts": (
        lambda: walk(change=counted_by_python),
        ("error", "determinism", "second time"),
    ),
    "python_if": (
        lambda: walk(change=asks_a_traced_value),
        ("error", "jit and vmap", "step cannot be traced"),
    ),
    "state_of_another_dtype": (
        changes_its_state,
        ("error", "jit and vmap", "int32 () -> float32 ()"),
    ),
    "lanes_see_each_other": (
        lambda: walk(change=through_numpy(sum_of_all)),
        ("error", "jit and vmap", "differs from the same lane alone"),
    ),
    "callback_fails": (
        lambda: walk(change=through_numpy(fails)),
        ("error", "jit and vmap", "fails while it runs"),
    ),
    "integer_reward": (
        lambda: spoilt(replace(reward=lambda t: t.reward.astype(int))),
        ("error", "dtypes", "reward is int32 () and should be float32 ()"),
    ),
    "observation_of_another_shape": (
        lambda: spoilt(replace(observation=lambda t: t.observation[:1])),
        ("error", "dtypes", "observation is float32 (1,) and should be float32 (2,)"),
    ),
    "single_action": (
        lambda: walk(spec=DiscreteSpec(1)),
        ("warning", "action", "single action"),
    ),
    "idle_actions": (
        lambda: walk(change=lambda row, key: set_in(set_in(row, 1, jnp.ones(2)), 2, 1.0)),
        ("warning", "action", "no action changed"),
    ),
    "action_on_the_last_row": (
        depends_on_last_action,
        ("error", "end flags", "depends on the action"),
    ),
    "blind": (
        lambda: with_first(replace(observation=lambda t: jnp.ones(2))),
        ("warning", "observations", "every observation is the same"),
    ),
    "large_observation": (
        lambda: with_first(replace(observation=lambda t: 1000 * t.observation)),
        ("warning", "observations", "numbers around 1"),
    ),
}


def looked_at(env, **options):
    """Findings as (severity, topic, sentence), by severity."""
    return doctor.check(env, **{"steps": 60} | options)


@pytest.mark.parametrize("name", BROKEN)
def test_a_fault_is_found(name):
    make, (severity, topic, words) = BROKEN[name]
    found = looked_at(make())
    named = [f for f in found if f.severity == severity and f.topic == topic]
    assert any(words in f.sentence for f in named), found
    if severity == "warning":
        assert doctor.count_errors(found) == 0


@pytest.mark.parametrize("spec", [DiscreteSpec(3), BoundedSpec(2)])
@pytest.mark.parametrize("terminal", [True, False])
def test_a_sound_environment_has_no_faults(spec, terminal):
    found = looked_at(walk(spec=spec, terminal=terminal))
    assert {f.severity for f in found} == {"ok"}
    assert {"spaces", "action", "determinism", "last observation", "end flags"} <= {
        f.topic for f in found
    }


def test_observations_are_held_against_their_range():
    found = looked_at(walk(), limits=(0.0, 0.5))
    assert ("error", "observations") in {f[:2] for f in found}
    assert doctor.count_errors(looked_at(walk(), limits=(0.0, 9.0))) == 0


def test_images_of_floats_lie_between_0_and_1():
    image = lambda t: t._replace(observation=jnp.full((4, 4, 1), 255.0) * t.observation[0])
    env = with_first(image)
    env = env._replace(spec=EnvSpec(ArraySpec((4, 4, 1), "float32"), env.spec.action))
    found = looked_at(env)
    assert any("emit uint8" in f.sentence for f in found if f.severity == "warning")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (EnvSpec(ArraySpec((), "float32"), DiscreteSpec(2)), "the shape (1,)"),
        (EnvSpec(ArraySpec((0,), "float32"), DiscreteSpec(2)), "at least one positive"),
        (EnvSpec(ArraySpec((2,), "float64"), DiscreteSpec(2)), "cast them"),
        (EnvSpec(ArraySpec([2], "float32"), DiscreteSpec(2)), "cannot be hashed"),
        (EnvSpec((2,), DiscreteSpec(2)), "not an ArraySpec"),
        (EnvSpec(ArraySpec((2,), "float32"), DiscreteSpec(0)), "at least one is needed"),
        (EnvSpec(ArraySpec((2,), "float32"), 2), "use a DiscreteSpec"),
        (None, "not an EnvSpec"),
    ],
)
def test_spaces_that_nothing_can_be_built_for(spec, words):
    found = looked_at(walk()._replace(spec=spec))
    assert found[0].severity == "error" and words in found[0].sentence


class _Unready:
    def make(self):
        raise OSError("no display")


@pytest.mark.parametrize(
    ("env", "words"),
    [(_Unready(), "OSError: no display"), (3, "a int is no environment"), (lambda: 3, "a int is")],
)
def test_what_is_no_environment_is_said(env, words):
    (found,) = doctor.check(env)
    assert found.severity == "error" and words in found.sentence


@pytest.mark.parametrize("name", probe.PROBES)
def test_configs_and_functions_that_make_environments_serve(name):
    for env in (probe.Config(name), lambda: probe.Config(name)):
        assert doctor.count_errors(looked_at(env, steps=20)) == 0
