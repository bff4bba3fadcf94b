"""What the authors' modules hold and do, as arrays by name, and how arrays get into them."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from experiments.studies.authors.ours import by_name
from experiments.studies.authors.problem import Arrays, Windows

Tensor = torch.Tensor
Module = TypeVar("Module", bound=nn.Module)
NO_GRADIENT = (
    1e-10  # of the norm of all gradients: in float64 what is less is 0 in exact arithmetic
)


def tensor(array: Any) -> Tensor:
    """In the precision that is set."""
    return torch.as_tensor(np.array(array), dtype=torch.get_default_dtype())


def rows_of(windows: Windows) -> tuple[Tensor, ...]:
    """As PyTorch code reads stored rows: frames [B, L, 3, 64, 64] in [0, 1], actions as floats."""
    frame, action, reward, end = map(tensor, windows)
    return frame.permute(0, 1, 4, 2, 3).contiguous() / 255, action, reward, end


def numbers(found: Tensor) -> np.ndarray:
    """A copy in float64."""
    return np.array(found.detach().double().numpy())


def state_of(module: nn.Module) -> Arrays:
    """A copy of its state dict."""
    return {name: numbers(found) for name, found in module.state_dict().items()}


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of all that `load` fills."""
    state = module.state_dict()
    return {name: tuple(x.shape) for name, x in state.items() if "num_batches" not in name}


def load(module: Module, arrays: Arrays) -> Module:
    """The module, filled by name. Raises ValueError for names that do not fit."""
    tensors = {name: tensor(array) for name, array in arrays.items()}
    missing, unexpected = module.load_state_dict(tensors, strict=False)
    left = [name for name in (*missing, *unexpected) if "num_batches" not in name]
    if left:
        raise ValueError(f"{left[0]!r} is not a tensor of both sides")
    return module


@contextlib.contextmanager
def gradients_of(module: nn.Module) -> Iterator[list[Arrays]]:
    """Gradients by tensor of every optimiser step, as they are before clipping."""
    clip, found = torch.nn.utils.clip_grad_norm_, []

    def recorded(parameters: Any, *args: Any, **kwargs: Any) -> Tensor:
        named = [(name, p.grad) for name, p in module.named_parameters() if p.grad is not None]
        found.append({name: numbers(grad) for name, grad in named})
        return clip(parameters, *args, **kwargs)

    torch.nn.utils.clip_grad_norm_ = recorded
    try:
        yield found
    finally:
        torch.nn.utils.clip_grad_norm_ = clip


@contextlib.contextmanager
def multinomials() -> Iterator[list[np.ndarray]]:
    """Probabilities that `torch.multinomial` is given; it draws the first classes."""
    draw, found = torch.multinomial, []

    def recorded(probabilities: Tensor, num: int, **options: Any) -> Tensor:
        found.append(numbers(probabilities))
        return torch.arange(num)

    torch.multinomial = recorded
    try:
        yield found
    finally:
        torch.multinomial = draw


def trees(
    to_state: Callable[[Arrays], Any],
    before: Arrays,
    gradients: Sequence[Arrays],
    states: Sequence[Arrays],
) -> dict[str, Any]:
    """Gradients, parameters and running statistics of the first and the last update, by our names.

    Tensors whose gradient is 0 in exact arithmetic are left out of the reference: only rounding
    moves them (biases before a batch normalisation).

    Args:
      to_state: from tensors by the authors' names to a state of ours.
      before: tensors before the first update.
      gradients: of each update.
      states: tensors after each update.
    """
    norms = [np.sqrt(sum((x**2).sum() for x in one.values())) for one in gradients]
    side: dict[str, Any] = {"losses/gradient norm": np.asarray(norms)}
    left_out = _without_gradient(by_name(to_state(before | gradients[0]).params))
    for i in (1, len(states)):
        after, grads = to_state(states[i - 1]), to_state(before | gradients[i - 1])
        side |= {
            f"gradients/update {i}": by_name(grads.params),
            f"parameters/after update {i}": by_name(after.params),
        }
        for name in (f"gradients/update {i}", f"parameters/after update {i}"):
            side[name] = {k: v for k, v in side[name].items() if k not in left_out}
        side[f"running statistics/after update {i}"] = by_name(after.stats)
    return side


def _without_gradient(gradients: Arrays) -> set[str]:
    if torch.get_default_dtype() != torch.float64:  # not the reference
        return set()
    norms = {name: np.linalg.norm(x) for name, x in gradients.items()}
    least = NO_GRADIENT * np.sqrt(sum(norm**2 for norm in norms.values()))
    return {name for name, norm in norms.items() if norm < least}


def behaviour_trees(
    to_state: Callable[[Arrays], Any],
    before: Arrays,
    gradient: Arrays,
    states: Sequence[Arrays],
) -> dict[str, Mapping[str, np.ndarray]]:
    """The same of a learner with a slow critic; `gradient` of its first optimiser step."""
    side = {"gradients/first step": by_name(to_state(before | gradient).params)}
    for i in (1, len(states)):
        after = to_state(states[i - 1])
        side |= {
            f"parameters/after update {i}": by_name(after.params),
            f"slow critic/after update {i}": by_name(after.stats.target_critic),
        }
    return side


def by_step(x: np.ndarray) -> list[np.ndarray]:
    """[M, H, …] as H times [M, 1, …]."""
    return [x[:, t : t + 1] for t in range(x.shape[1])]
