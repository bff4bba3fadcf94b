"""Convolutions between batch normalisations, without a normalised map in memory.

A convolutional net with batch normalisation moves each of its maps through memory more than ten
times in an update. Here a map is kept as it leaves its convolution, beside its moments; the next
layer normalises and activates it where it reads it. On CPU a layer takes frames group by group, so
that all its work on a group happens in the cache, and seeds one after the other; backward does the
same and writes the gradient of each map once.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mbrl_jax.networks.norms import Activation, Affine, Moments, activate
from mbrl_jax.ssm.lanes import largest_divisor, take_turns
from mbrl_jax.types import Array, PyTree

GROUP_ELEMENTS = 2**20  # of the larger map of a layer, in one group of frames on CPU
FEW_CHANNELS = 16  # up to here XLA:CPU writes the loop over them out, and the exp stays scalar


def layer(
    convolve: Callable[[Array, Array], Array],
    x: Array,
    affine: Affine | None,
    kernel: Array,
    bias: Array,
    activation: Activation = "silu",
) -> tuple[Array, Moments]:
    """Normalise and activate, convolve, add the bias; the moments of the result beside it.

    Args:
      convolve: (maps [N, H, W, C], kernel [k, k, C, Co]) -> [N, Ho, Wo, Co].
      x: [N, H, W, C] as it left the layer before.
      affine: the normalisation of x, or None to take x as it is.
      kernel: [k, k, C, Co].
      bias: [Co].
      activation: of the normalised x.
    """
    return _layer(convolve, activation, x, affine, kernel, bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _layer(convolve, activation, x, affine, kernel, bias):
    return _forward(convolve, activation, x, affine, kernel, bias)[0]


def _forward(convolve, activation, x, affine, kernel, bias):
    run = _seed_by_seed(functools.partial(_run_forward, convolve, activation))
    y, found = run(x, affine, kernel, bias)
    return (y, found), (x, affine, kernel, y, found.mean)


def _backward(convolve, activation, kept, bars):
    return _seed_by_seed(functools.partial(_run_backward, convolve, activation))(kept, bars)


_layer.defvjp(_forward, _backward)

# ------------------------------------------------------------------------------------ the passes


def _run_forward(convolve, activation, x, affine, kernel, bias):
    out = jax.eval_shape(convolve, x, kernel)
    wide, wide_bias = _wide(affine, x.shape[2]), _wide(bias, out.shape[2])
    frame_by_frame = affine is not None and _leaves_lines(x, out)

    def one_group(_, x):
        run = functools.partial(activate, affine=wide, activation=activation)
        a = jax.lax.map(run, _lines(x)) if frame_by_frame else run(_lines(x))
        y = _lines(convolve(a.reshape(x.shape), kernel))
        mean = y.mean((0, 1))
        found = Moments(mean + wide_bias, jnp.square(y - mean).mean((0, 1)))
        return None, ((y + wide_bias).reshape((-1,) + out.shape[1:]), found)

    _, (y, found) = _over_groups(one_group, None, x, _group_size(x, out))
    # Every group and column has moments of its own; all stand for equally many numbers.
    means, variances = (leaf.reshape(-1, out.shape[-1]) for leaf in found)
    mean = means.mean(0)
    var = variances.mean(0) + jnp.square(means - mean).mean(0)
    return y.reshape(out.shape), Moments(mean, var)


def _run_backward(convolve, activation, kept, bars):
    x, affine, kernel, y, mean = kept
    y_bar, (mean_bar, var_bar) = bars
    count = y.size // y.shape[-1]
    # What the moments pass on to their map: slope · y + start.
    slope = 2 * var_bar / count
    slope, start = _wide((slope, mean_bar / count - slope * mean), y.shape[2])
    wide = _wide(affine, x.shape[2])

    def one_group(sums, group):
        x, y, y_bar = group
        y_bar = _lines(y_bar) + (slope * _lines(y) + start)
        a, pull = _activation(activation, x, wide)
        _, pull_convolution = jax.vjp(convolve, a, kernel)
        a_bar, kernel_bar = pull_convolution(y_bar.reshape(y.shape))
        x_bar, affine_bar = pull(a_bar)
        found = (affine_bar, kernel_bar, y_bar.sum((0, 1)))
        return jax.tree.map(jnp.add, sums, found), x_bar

    zeros = jax.tree.map(jnp.zeros_like, (wide, kernel, start))
    sums, x_bar = _over_groups(one_group, zeros, (x, y, y_bar), _group_size(x, y))
    affine_bar, kernel_bar, bias_bar = sums
    affine_bar = jax.tree.map(lambda a: a.reshape(-1, x.shape[-1]).sum(0), affine_bar)
    bias_bar = bias_bar.reshape(-1, y.shape[-1]).sum(0)
    return x_bar.reshape(x.shape), affine_bar, kernel_bar, bias_bar


def _activation(
    activation: Activation, x: Array, wide: Affine | None
) -> tuple[Array, Callable[[Array], tuple[Array, Affine | None]]]:
    """`activate` and its pull-back to x and to `wide`, the affine for each column and channel."""
    if wide is None:
        return x, lambda a_bar: (a_bar, None)
    z = wide.scale * _lines(x) + wide.shift
    if activation == "silu":
        gate = jax.nn.sigmoid(z)
        a, slope = z * gate, gate + z * gate * (1 - gate)
    else:
        a, slope = jax.nn.relu(z), (z > 0).astype(z.dtype)

    def pull(a_bar):
        z_bar = _lines(a_bar) * slope
        affine_bar = Affine((z_bar * _lines(x)).sum((0, 1)), z_bar.sum((0, 1)))
        return (z_bar * wide.scale).reshape(x.shape), affine_bar

    return a.reshape(x.shape), pull


# --------------------------------------------------------------------------------------- helpers


def _lines(x: Array) -> Array:
    """[N, H, W, C] as [N, H, W · C], so that inner loops are long."""
    return x.reshape(x.shape[:2] + (-1,))


def _wide(vectors: PyTree, columns: int) -> PyTree:
    """Vectors [C] as wide as a line [W · C].

    To be made before the loop over groups: inside it XLA fuses the tiling into the work on lines
    and finds every channel by a remainder.
    """
    return jax.tree.map(lambda a: jnp.tile(a, columns), vectors)


def _leaves_lines(x, y) -> bool:
    """Whether XLA:CPU would activate x in the shape that a convolution to y wants, and slowly.

    It then loops over the channels of a pixel, which it does not vectorise if there are few. What
    leaves a loop over frames stays in lines. A convolution without a stride takes lines of its own.
    """
    strided = y.shape[1] < x.shape[1]
    return jax.default_backend() == "cpu" and strided and x.shape[-1] <= FEW_CHANNELS


def _over_groups(one_group: Callable, carry: PyTree, maps: PyTree, size: int):
    """Scan `one_group` over groups of `size` frames; results have a leading axis of groups."""
    groups = jax.tree.map(lambda a: a.reshape((-1, size) + a.shape[1:]), maps)
    return jax.lax.scan(one_group, carry, groups)


def _group_size(x, y) -> int:
    """Frames of a group: the largest divisor of their number that fits into the cache.

    Accelerators take all frames at once.
    """
    frames = x.shape[0]
    if jax.default_backend() != "cpu":
        return frames
    largest = max(math.prod(x.shape[1:]), math.prod(y.shape[1:]))
    return largest_divisor(frames, GROUP_ELEMENTS // largest)


def _seed_by_seed(run: Callable) -> Callable:
    """`run` on arrays; under vmap on CPU its lanes take turns."""
    return take_turns(run) if jax.default_backend() == "cpu" else run
