"""True errors of imagined steps on Pendulum, and their ranks; `penalties` prints them."""

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.types import Array, Behaviour, Key, Timestep, WorldModel, bind


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
