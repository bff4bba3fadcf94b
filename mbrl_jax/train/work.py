"""How large programs are: parameters, and floating-point work, read off a jaxpr."""

import math
from typing import Any

import jax

from mbrl_jax.types import Agent, PyTree


def count_numbers(tree: PyTree) -> int:
    """Numbers in all leaves, which may be shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def parameters(agent: Agent) -> dict[str, int]:
    """Numbers that are trained, by learner."""
    state = jax.eval_shape(agent.init, jax.random.key(0))
    learners = {"world model": state.world_model, "behaviour": state.behaviour}
    return {name: count_numbers(learner.params) for name, learner in learners.items()}


def count_flops(closed: Any) -> float:
    """Floating-point operations of the matrix products and convolutions of a jaxpr.

    A multiplication and an addition count as two. Elementwise work counts nothing. Of a
    conditional the dearer branch counts; a loop of unknown length (`while`) counts once.
    """
    jaxpr = getattr(closed, "jaxpr", closed)
    return sum(_flops_of(equation) for equation in jaxpr.eqns)


def _flops_of(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        summed = math.prod(left[i] for i in contracted)
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * summed
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        numbers = params["dimension_numbers"]
        taps = math.prod(kernel[i] for i in numbers.rhs_spec[1:])  # inputs of a group, and places
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * taps / _dilution(params)
    if name == "cond":
        return max(count_flops(branch) for branch in params["branches"])
    inner = sum(count_flops(jaxpr) for jaxpr in _inner_jaxprs(params))
    times = {"scan": lambda: params["length"], "shard_map": lambda: params["mesh"].size}
    return inner * times.get(name, lambda: 1)()


def _dilution(params: dict[str, Any]) -> int:
    """Of a transposed convolution most inputs are zeros between the rows."""
    return math.prod(params["lhs_dilation"])


def _inner_jaxprs(params: dict[str, Any]) -> list[Any]:
    found: list[Any] = []
    for value in params.values():
        found += value if isinstance(value, tuple | list) else [value]
    return [value for value in found if hasattr(getattr(value, "jaxpr", value), "eqns")]
