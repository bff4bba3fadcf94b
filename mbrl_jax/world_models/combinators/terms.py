"""A world model that is trained on one more term: contrastive, predictive, a regulariser."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mbrl_jax.types import Array, LearnerState, Trajectory, WorldModel


def with_term(
    model: WorldModel, term: Callable[[Array, Trajectory], Array], name: str
) -> WorldModel:
    """A copy of `model` whose loss has a further term on its features.

    Its gradient reaches all that the features of observed rows depend on. `features` itself gets
    the parameters that are trained.

    Args:
      model: one with a loss; its own metrics stay as they are, but for "model/loss".
      term: (features [B, L, F], the rows [B, L] that they are of) -> []. Rows of several episodes
        may stand in one window: `rows.timestep.is_first` says where one begins.
      name: the term is logged as "model/NAME".

    Raises:
      ValueError: `model` has no loss, since it is fitted in closed form.
    """
    if model.loss is None:
        raise ValueError("this world model has no loss to add a term to: it has an update instead")
    return model._replace(loss=functools.partial(_loss, model, term, name))


def _loss(model, term, name, params, stats, key, batch):
    """The loss of `model` and the term: as every `ModelLoss`."""
    total, (entries, new_stats, metrics) = model.loss(params, stats, key, batch)
    rows = jax.tree.map(lambda x: x[:, :-1], batch)
    windows = jnp.arange(rows.timestep.reward.shape[1])
    latents = jax.vmap(jax.vmap(model.latent_at, (None, 0)), (0, None))(entries, windows)
    state = LearnerState(params, new_stats, ())
    features = jax.vmap(jax.vmap(functools.partial(model.features, state)))(latents)
    extra = term(features, rows)
    one = jnp.ones(())
    logged = {f"model/{name}": (extra, one), "model/loss": (total + extra, one)}
    return total + extra, (entries, new_stats, metrics | logged)
