"""What combinators share: a world model with other ways to learn."""

from typing import Any

from mbrl_jax.types import Apply, Derived, ModelLoss, ModelUpdate, WorldModel


def with_learning(
    model: WorldModel, *, loss: ModelLoss, apply: Apply, update: ModelUpdate, **others: Any
) -> WorldModel:
    """A copy of `model` that learns as told, by no more ways than it had.

    An update that was derived stays derived, from the new `loss` and `apply`: who replaces the
    loss of the copy replaces what it is trained on.

    Args:
      model: the one that is wrapped.
      loss: used if `model` has a loss.
      apply: used if `model` has an apply.
      update: used if `model` has an update of its own (a closed form).
      **others: further functions of the copy.
    """
    changes = dict(others)
    if model.loss is not None:
        changes["loss"] = loss
    if model.apply is not None:
        changes["apply"] = apply
    if not isinstance(model.update, Derived):
        changes["update"] = update
    return model._replace(**changes)
