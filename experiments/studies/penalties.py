"""Does an ensemble's uncertainty know where its model errs? On Pendulum, where the truth is known.

    python -m experiments.studies.penalties --workdir=runs/mopo

The policy of each seed of a run plays ten steps in its world model, from rows of its data. For
each imagined step the true one is made from the same observation and action. Prints, for each
measure that the model reports, its rank correlation (Spearman's) with the true error of that step,
‖(o', r) imagined - true‖, and its mean; the protocol of Lu et al. 2022 (arXiv 2110.04135).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from launch import flags as launch_flags
from mbrl_jax.types import Array, Behaviour, Key, Timestep, WorldModel, bind

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of a run on gymnax's Pendulum-v1.")
_STARTS = flags.DEFINE_integer("starts", 500, "Rows of the data to start from.", lower_bound=1)
_STEPS = flags.DEFINE_integer("num_steps", 10, "Imagined steps from each.", lower_bound=1)


def true_step(observation: Array, action: Array) -> tuple[Array, Array]:
    """(o', r) of gymnax's Pendulum for (cos θ, sin θ, θ') `[3]` and an action `[1]`."""
    import gymnax
    from gymnax.environments.classic_control.pendulum import EnvState

    env, params = gymnax.make("Pendulum-v1")
    angle = jnp.arctan2(observation[1], observation[0])
    state = EnvState(time=0, theta=angle, theta_dot=observation[2], last_u=jnp.zeros(()))
    torque = params.max_torque * jnp.clip(action, -1.0, 1.0)
    after, _, reward, _, _ = env.step_env(jax.random.key(0), state, torque, params)
    return after, reward


def errors(
    model: WorldModel, behaviour: Behaviour, num_steps: int, state, key: Key, observations: Array
) -> tuple[Array, dict[str, Array]]:
    """True errors `[B, num_steps]` of imagined steps from `[B, 3]`, and what the model reports."""
    bound = bind(model, state.world_model)

    def single(key, observation):
        row = Timestep(observation, jnp.zeros(()), True, False, False)

        def body(latent, step_key):
            act_key, model_key = jax.random.split(step_key)
            _, action = behaviour.act(
                state.behaviour, act_key, behaviour.initial_carry(), latent, bound, explore=True
            )
            imagined = bound.imagine(model_key, latent, action)
            said = bound.predict(imagined)
            observation, reward = true_step(bound.decode(latent), action)
            off = bound.decode(imagined) - observation
            wrong = said.reward + said.extras.get("penalty", 0.0) - reward
            return imagined, (jnp.sqrt(jnp.sum(off**2) + wrong**2), said.extras)

        start = bound.observe(key, bound.initial_latent(), row, jnp.zeros((1,)))
        return jax.lax.scan(body, start, jax.random.split(key, num_steps))[1]

    return jax.vmap(single)(jax.random.split(key, len(observations)), observations)


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's; ties are broken by their order, and what is constant has none (NaN)."""
    if min(np.ptp(x), np.ptp(y)) == 0:
        return float("nan")
    ranks = [np.argsort(np.argsort(v.ravel(), kind="stable")) for v in (x, y)]
    return float(np.corrcoef(*ranks)[0, 1])


def main() -> None:
    """Print a row for each measure, with a column for each member of the run."""
    from mbrl_jax import datasets
    from mbrl_jax.errors import ConfigError
    from mbrl_jax.experiment.config import with_numbers
    from mbrl_jax.experiment.experiment import build
    from mbrl_jax.train import trained

    if not _WORKDIR.value:
        raise ConfigError("--workdir is needed; see --help")
    experiment, programs, agent, _ = trained.restore_run(_WORKDIR.value)
    if not experiment.data or getattr(experiment.env, "name", "") != "Pendulum-v1":
        raise ConfigError(f"{_WORKDIR.value} is no run on a data set of Pendulum-v1")
    members, table = programs.members, []
    for i, numbers in enumerate(members.settings):
        system = build(with_numbers(experiment, numbers))
        behaviour = experiment.behaviour.make(system.env.spec)
        rows = datasets.load(experiment.data[0][1], system.env.spec)
        key = jax.random.key(0)
        chosen = jax.random.randint(key, (_STARTS.value,), 0, len(rows.timestep.reward))
        starts = jnp.asarray(rows.timestep.observation)[chosen]
        found = jax.jit(functools.partial(errors, system.world_model, behaviour, _STEPS.value))
        for seed in range(members.num_seeds):
            state = jax.tree.map(lambda x, m=i * members.num_seeds + seed: x[m], agent)
            table.append(
                (numbers, members.first_seed + seed, *jax.device_get(found(state, key, starts)))
            )
    for numbers, seed, error, reported in table:
        setting = "".join(f"{path}={number:g}, " for path, number in numbers.items())
        print(f"{setting}seed {seed}: mean true error {error.mean():.3g}")
        for name, value in sorted(reported.items()):
            print(f"  {name:20s} {rank_correlation(value, error):6.2f}  mean {value.mean():.3g}")


if __name__ == "__main__":
    launch_flags.run_main(main)
