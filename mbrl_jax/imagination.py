"""The one imagined rollout that learners, planners and reports share."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from mbrl_jax.types import BoundModel, Key, PyTree


def imagine_rollout(
    model: BoundModel,
    policy: Callable,
    key: Key,
    start: PyTree,
    horizon: int,
    extract: Callable = lambda latent: latent,
    carry: PyTree = (),
) -> tuple[PyTree, PyTree]:
    """Let `policy` act in the world model; single stream, `vmap` adds starts.

    Args:
      model: the bound world model.
      policy: (key, carry, latent) -> (carry, action).
      key: consumed; step t uses `split(key, horizon)[t]`.
      start: the latent to start from.
      horizon: H, number of imagined actions.
      extract: what to keep of each latent. Of whole latents XLA stores what is read afterwards.
      carry: what the policy remembers before the first action, as `Behaviour.initial_carry` gives.

    Returns:
      (extracted [H+1], actions [H]): row 0 belongs to `start`, row t + 1 follows action t.
    """
    chex.assert_rank(key, 0)

    def body(state, step_key):
        carry, latent = state
        policy_key, model_key = jax.random.split(step_key)
        carry, action = policy(policy_key, carry, latent)
        return (carry, model.imagine(model_key, latent, action)), (extract(latent), action)

    keys = jax.random.split(key, horizon)
    (_, last), (kept, actions) = jax.lax.scan(body, (carry, start), keys)
    kept = jax.tree.map(lambda rows, end: jnp.concatenate([rows, end[None]]), kept, extract(last))
    return kept, actions


def imagine_together(
    model: BoundModel, policy: Callable, keys: Key, starts: PyTree, horizon: int, carry: PyTree
) -> tuple[PyTree, PyTree, PyTree]:
    """`imagine_rollout` from M starts that go on in step, with a policy that sees all of them.

    Args:
      model: the bound world model.
      policy: (keys [M], carry, latents [M]) -> (carry, actions [M], what else to keep [M]).
      keys: [M], consumed; each start draws what `imagine_rollout` draws with its key.
      starts: [M] latents to start from.
      horizon: H.
      carry: what the policy of all starts remembers.

    Returns:
      (carry, latents [M, H+1], (actions [M, H], what else was kept [M, H])).
    """
    chex.assert_rank(keys, 1)

    def body(state, step_keys):
        carry, latents = state
        policy_keys, model_keys = jnp.moveaxis(jax.vmap(jax.random.split)(step_keys), 1, 0)
        carry, actions, more = policy(policy_keys, carry, latents)
        following = jax.vmap(model.imagine)(model_keys, latents, actions)
        return (carry, following), (latents, (actions, more))

    by_step = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, horizon))(keys), 1, 0)
    (carry, last), kept = jax.lax.scan(body, (carry, starts), by_step)
    latents, said = jax.tree.map(lambda rows: jnp.moveaxis(rows, 0, 1), kept)
    join = lambda rows, end: jnp.concatenate([rows, end[:, None]], axis=1)  # noqa: E731
    return carry, jax.tree.map(join, latents, last), said


def follow_actions(
    model: BoundModel, key: Key, start: PyTree, actions: PyTree, extract: Callable
) -> PyTree:
    """Imagine given actions [H] from `start`; returns extracted [H], after each action."""
    chex.assert_rank(key, 0)
    chex.assert_equal_shape_prefix(jax.tree.leaves(actions), 1)

    def body(latent, row):
        step_key, action = row
        latent = model.imagine(step_key, latent, action)
        return latent, extract(latent)

    num_steps = jax.tree.leaves(actions)[0].shape[0]
    return jax.lax.scan(body, start, (jax.random.split(key, num_steps), actions))[1]
