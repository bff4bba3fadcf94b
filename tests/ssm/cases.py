"""Random inputs of the kernels, and how far apart two results are."""

import numpy as np

BATCH = 4  # streams of one case: values and resets vary within one compiled shape


def resets(rng, length, chunk_size):
    """[BATCH, T]: never; first and last row; chunk seams; at random."""
    flags = np.zeros((BATCH, length), bool)
    flags[1, [0, -1]] = True
    flags[2, ::chunk_size] = True
    flags[3] = rng.random(length) < 0.2
    return flags


def ssd(seed, length, heads=2, channels=3, groups=1, states=4, chunk_size=8):
    """Arguments of `ssm.ssd` by name, initial state and resets included."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    return {
        "x": normal(BATCH, length, heads, channels),
        "dt": rng.uniform(0.01, 1.0, (BATCH, length, heads)).astype(np.float32),
        "A": -rng.uniform(0.1, 4.0, heads).astype(np.float32),
        "B": normal(BATCH, length, groups, states),
        "C": normal(BATCH, length, groups, states),
        "D": normal(heads),
        "reset": resets(rng, length, chunk_size),
        "initial_state": normal(BATCH, states, heads, channels),
    }


def selective_scan(seed, length, channels=5, states=3, chunk_size=8):
    """Arguments of `ssm.selective_scan` by name, initial state and resets included."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    return {
        "u": normal(BATCH, length, channels),
        "delta": rng.uniform(0.01, 1.0, (BATCH, length, channels)).astype(np.float32),
        "A": -rng.uniform(0.1, 4.0, (channels, states)).astype(np.float32),
        "B": normal(BATCH, length, states),
        "C": normal(BATCH, length, states),
        "D": normal(channels),
        "reset": resets(rng, length, chunk_size),
        "initial_state": normal(BATCH, states, channels),
    }


def extreme(case, seed, step="dt"):
    """The case with step sizes from 1e-6 to 50 and rates from -0.01 to -100, log-uniform.

    One rate is -100 and some steps are 50 (a decay of exp(-5000)) or 0, beside the smallest.
    """
    rng = np.random.default_rng(seed)
    steps = np.exp(rng.uniform(np.log(1e-6), np.log(50.0), case[step].shape))
    steps = np.where(rng.random(steps.shape) < 0.1, rng.choice([0.0, 1e-6, 50.0]), steps)
    rates = -np.exp(rng.uniform(np.log(0.01), np.log(100.0), case["A"].shape))
    rates.flat[rng.integers(rates.size)] = -100.0
    return case | {step: steps.astype(np.float32), "A": rates.astype(np.float32)}


def error(got, wanted):
    """Largest difference, relative to the largest value wanted (or to 1e-3)."""
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    assert got.shape == wanted.shape
    return np.abs(got - wanted).max(initial=0) / max(np.abs(wanted).max(initial=0), 1e-3)


def perturbed_slope(function, case, name, direction, step=1e-5):
    """Slope of a float64 scalar function of the case along `direction`, by central differences."""
    value = np.asarray(case[name], np.float64)
    above = function(**(case | {name: value + step * direction}))
    return (above - function(**(case | {name: value - step * direction}))) / (2 * step)
