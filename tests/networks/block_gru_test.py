"""The block-diagonal GRU against plain NumPy, and what its gates promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.networks.block_gru import BlockGru

pytestmark = pytest.mark.usefixtures("quick_compile")

WIDTH, HIDDEN, BLOCKS, LAYERS = 6, 5, 3, 2
IN_BLOCK = WIDTH // BLOCKS
CELL = BlockGru(WIDTH, HIDDEN, BLOCKS, LAYERS)


@pytest.fixture(scope="module")
def example():
    """(params, h [D], inputs); biases and scales are not at their start."""
    keys = jax.random.split(jax.random.key(0), 4)
    inputs = jax.random.normal(keys[0], (4,)), jax.random.normal(keys[1], (2,))
    h = jax.random.normal(keys[2], (WIDTH,))
    params = jax.jit(CELL.init)(keys[3], h, inputs)["params"]
    noise = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + 0.1 * noise.normal(size=x.shape), params), h, inputs


@pytest.fixture(scope="module")
def cell():
    return jax.jit(lambda params, h, inputs: CELL.apply({"params": params}, h, inputs))


def _activate(x, norm):
    x = x / np.sqrt((x**2).mean() + 1e-4) * norm["scale"]
    return x / (1.0 + np.exp(-x))


def _sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def _plain(params, h, inputs):
    """One step, block by block, in float64."""
    params, h, inputs = jax.tree.map(lambda x: np.asarray(x, np.float64), (params, h, inputs))
    heard = [
        _activate(x @ params[f"Dense_{i}"]["kernel"] + params[f"Dense_{i}"]["bias"], norm)
        for i, (x, norm) in enumerate(
            zip((h, *inputs), (params[f"RMSNorm_{i}"] for i in range(3)), strict=True)
        )
    ]
    summary = np.concatenate(heard)
    blocks = [np.concatenate([h[IN_BLOCK * g :][:IN_BLOCK], summary]) for g in range(BLOCKS)]
    for layer in range(LAYERS):
        linear = params[f"BlockLinear_{layer}"]
        pieces = [b @ linear["kernel"][g] + linear["bias"][g] for g, b in enumerate(blocks)]
        x = _activate(np.concatenate(pieces), params[f"RMSNorm_{3 + layer}"])
        blocks = x.reshape(BLOCKS, IN_BLOCK)
    linear, new = params[f"BlockLinear_{LAYERS}"], np.zeros(WIDTH)
    for g, block in enumerate(blocks):
        gates = block @ linear["kernel"][g] + linear["bias"][g]
        for i in range(IN_BLOCK):
            reset, candidate, update = (gates[i + k * IN_BLOCK] for k in range(3))
            update = _sigmoid(update - 1.0)
            place = g * IN_BLOCK + i
            new[place] = (1 - update) * h[place] + update * np.tanh(_sigmoid(reset) * candidate)
    return new


def _with_update_bias(params, value):
    last = f"BlockLinear_{LAYERS}"
    bias = params[last]["bias"].at[:, 2 * IN_BLOCK :].set(value)
    return params | {last: params[last] | {"bias": bias}}


def test_one_step_is_that_of_plain_numpy(example, cell):
    np.testing.assert_allclose(cell(*example), _plain(*example), rtol=1e-5, atol=1e-6)


def test_an_update_gate_of_minus_infinity_keeps_the_state(example, cell):
    params, h, inputs = example
    np.testing.assert_array_equal(cell(_with_update_bias(params, -np.inf), h, inputs), h)


def test_an_update_gate_of_plus_infinity_forgets_it(example, cell):
    params, h, inputs = example
    new = cell(_with_update_bias(params, np.inf), h, inputs)
    assert np.abs(new).max() < 1.0 < np.abs(h).max()  # a tanh


def test_leading_axes_are_a_batch(example, cell):
    params, h, inputs = example
    stack = lambda x: jnp.stack([x, 2.0 * x])  # noqa: E731
    both = cell(params, stack(h), jax.tree.map(stack, inputs))
    np.testing.assert_allclose(both[0], cell(params, h, inputs), rtol=1e-6)


def test_blocks_hear_each_other_through_the_summary_alone():
    cell = BlockGru(WIDTH, HIDDEN, BLOCKS, layers=0)  # without the norm that goes over all of them
    h, inputs = jnp.linspace(-1.0, 2.0, WIDTH), (jnp.ones(2),)
    params = jax.jit(cell.init)(jax.random.key(1), h, inputs)["params"]
    deaf = params | {"Dense_0": jax.tree.map(jnp.zeros_like, params["Dense_0"])}
    jacobian = jax.jit(jax.jacobian(lambda h, params: cell.apply({"params": params}, h, inputs)))
    own = np.kron(np.eye(BLOCKS), np.ones((IN_BLOCK, IN_BLOCK))).astype(bool)
    assert np.abs(np.asarray(jacobian(h, deaf))[~own]).max() == 0.0
    assert np.abs(np.asarray(jacobian(h, params))[~own]).min() > 0.0


def test_published_parameters_golden():
    """The cell of the preset "200m" on Atari: deter 8192, hidden 1024, 32 · 64 classes."""
    cell = BlockGru(8192, 1024)
    sizes = (8192,), ((2048,), (18,))
    h, inputs = jax.tree.map(jnp.zeros, sizes, is_leaf=lambda x: isinstance(x[0], int))
    params = jax.eval_shape(cell.init, jax.random.key(0), h, inputs)["params"]
    dense = (8192 + 2048 + 18 + 3 * 1) * 1024 + 3 * 1024
    blocks = 8 * (1024 + 3 * 1024) * 1024 + 8192 + 8192 + 8 * 1024 * 3072 + 3 * 8192
    assert sum(x.size for x in jax.tree.leaves(params)) == dense + blocks == 69_271_552


def test_blocks_must_divide_the_width():
    with pytest.raises(ValueError, match="blocks=4"):
        BlockGru(6, 4, blocks=4).init(jax.random.key(0), jnp.zeros(6), ())
