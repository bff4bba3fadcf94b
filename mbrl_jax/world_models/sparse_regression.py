"""Sparse regression on a library of polynomials: sequentially thresholded least squares (STLSQ).

The library is affine in the action (terms P of the state x without a constant, A actions u):

    Θ(x, u) = [P(x), u, P(x) ⊗ u]   of F = P + A + P · A terms

All shapes are fixed, so that it runs under `jit` and `vmap`: a term that was dropped stays in the
normal equations, masked. They are solved by Gauss-Jordan elimination written out here, because
jaxlib's batched LAPACK calls can deadlock on CPUs with few cores.

References: Brunton et al. 2016 (SINDy), https://arxiv.org/abs/1509.03517;
Fasel et al. 2022 (ensembles of them), https://arxiv.org/abs/2111.10992.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp

from mbrl_jax.types import Array, Key, bounded, number, switch

# Share of a column's square that the columns before it leave unexplained, below which it counts as
# lying in their span: what float32 leaves of nothing is smaller.
COLLINEAR = 1e-5


@dataclasses.dataclass(frozen=True)
class Config:
    """A library and an ensemble of sparse regressions on it.

    Defaults are those of SINDy-RL for the swing-up of a cart-pole.
    """

    degree: int = bounded(2, low=1)  # of the polynomials P
    interactions: bool = True  # False: powers of single numbers alone
    threshold: float = number(7e-3, "coefficients below it are dropped", low=0)
    ridge: float = number(5e-5, "weight of the squared coefficients while terms are dropped", low=0)
    rounds: int = bounded(20, low=1)
    members: int = bounded(20, low=1)
    dropped_terms: int = bounded(1, low=0)  # of the library, for each member anew
    bag_fraction: float = switch(
        1.0,
        published=0.6,
        better=1.0,
        above=0,
        high=1,
        why="rows that a member draws with replacement, as a share of the batch: pysindy 1.7.5 "
        "takes 0.6 of them, pysindy 2 all",
    )
    refit: bool = switch(
        True,
        published=False,
        better=True,
        why="plain least squares on the terms that are left: pysindy 1.7.5 leaves the members of "
        "an ensemble with the ridge's smaller coefficients, pysindy 2 refits them",
    )


def monomials(config: Config, size: int) -> list[tuple[int, ...]]:
    """The factors of each term of P, of lower degrees first; (0, 1) stands for x_0 x_1."""
    choose = functools.partial(itertools.combinations_with_replacement, range(size))
    terms = [term for degree in range(1, config.degree + 1) for term in choose(degree)]
    return [term for term in terms if config.interactions or len(set(term)) == 1]


def library(config: Config, x: Array, u: Array) -> Array:
    """Θ [..., F] of states [..., D] and actions [..., A]; the first D terms are the state."""
    factors = (x[..., jnp.asarray(term)] for term in monomials(config, x.shape[-1]))
    p = jnp.stack([f.prod(-1) for f in factors], axis=-1)
    products = p[..., :, None] * u[..., None, :]
    return jnp.concatenate([p, u, products.reshape(*products.shape[:-2], -1)], axis=-1)


def predict(theta: Array, coefficients: Array) -> Array:
    """Targets [..., K] of a library [..., F] and coefficients [F, K], to float32 on any device."""
    return jnp.matmul(theta, coefficients, precision="highest")


def fit(config: Config, key: Key, theta: Array, targets: Array, weight: Array) -> Array:
    """The median over the ensemble of the coefficients [F, K] of K targets.

    A member sees rows drawn with replacement, and a library without some random terms. The median
    is of each coefficient alone: what less than half of the members keep is dropped.

    Args:
      config: of the ensemble.
      key: consumed.
      theta: library [R, F].
      targets: [R, K].
      weight: [R] how often each row counts; what counts 0 may hold anything, NaN included.
    """
    theta, targets = (jnp.where(weight[:, None] > 0, x, 0.0) for x in (theta, targets))
    rows, size = theta.shape
    draws = round(config.bag_fraction * rows)
    all_targets = jax.vmap(functools.partial(stlsq, config), (None, 1, None, None), 1)

    def member(member_key):
        row_key, term_key = jax.random.split(member_key)
        drawn = jax.random.randint(row_key, (draws,), 0, rows)
        counts = jnp.zeros((rows,)).at[drawn].add(1.0) * weight
        allowed = jax.random.permutation(term_key, size) >= config.dropped_terms
        return all_targets(theta, targets, counts, allowed)

    return jnp.median(jax.vmap(member)(jax.random.split(key, config.members)), axis=0)


def stlsq(config: Config, theta: Array, target: Array, weight: Array, allowed: Array) -> Array:
    """Sparse coefficients [F] of one target.

      repeat: w = argmin Σ_r c_r (y_r - Θ_r w)² + α ‖w‖² on the terms that are left; those with
      |w| < threshold are dropped and never come back

    A term in the span of terms before it takes no part: a ridge would share coefficients out
    among them, in float32 at random.

    Args:
      config: thresholds and rounds; those beyond the last change do nothing.
      theta: library [R, F] of the rows.
      target: [R].
      weight: [R] c, how often each row counts.
      allowed: [F] bool: the terms to begin with.
    """
    gram = jnp.einsum("rf,r,rg->fg", theta, weight, theta, precision="highest")
    moment = functools.partial(jnp.einsum, "rf,r,r->f", theta, weight, precision="highest")

    def solve(active, ridge):
        found, _ = least_squares(gram, moment(target), active, ridge)
        # Normal equations square the library's condition; what is left over gives digits back.
        rest = moment(target - predict(theta, found)) - ridge * found
        return found + least_squares(gram, rest, active, ridge)[0]

    def drop(loop, _):
        active, _ = loop
        found = solve(active, config.ridge)
        active &= jnp.abs(found) >= config.threshold
        return (active, jnp.where(active, found, 0.0)), None

    _, independent = least_squares(gram, moment(target), allowed, 0.0)
    start = (independent, jnp.zeros(theta.shape[-1:]))
    (active, found), _ = jax.lax.scan(drop, start, length=config.rounds)
    return solve(active, 0.0) if config.refit else found


def least_squares(
    gram: Array, moment: Array, active: Array, ridge: Array | float
) -> tuple[Array, Array]:
    """w [F] with (G + α I) w = b on the active terms, 0 elsewhere; finite whatever G.

    Columns are scaled to length 1 and eliminated in their order; one that lies in the span of
    those before it (a constant beside a constant, a column of zeros) gets 0.

    Args:
      gram: G = Θᵀ C Θ [F, F].
      moment: b = Θᵀ C y [F].
      active: [F] bool.
      ridge: α [].

    Returns:
      w, and which of the active terms are independent of those before them [F].
    """
    squares = jnp.where(active, jnp.diagonal(gram) + ridge, 0.0)
    scale = jnp.where(squares > 0, jax.lax.rsqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)
    matrix = (gram + ridge * jnp.eye(len(moment))) * scale[:, None] * scale
    system = jnp.concatenate([matrix, (scale * moment)[:, None]], axis=1)  # [F, F + 1]

    def eliminate(system, i):
        pivot = system[i, i]
        independent = pivot > COLLINEAR
        row = jnp.where(independent, system[i] / jnp.maximum(pivot, COLLINEAR), 0.0)
        return (system - system[:, i, None] * row).at[i].set(row), independent

    solved, independent = jax.lax.scan(eliminate, system, jnp.arange(len(moment)))
    return scale * solved[:, -1], independent
