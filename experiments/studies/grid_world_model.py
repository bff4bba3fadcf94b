"""Next-token prediction with a sequence core: parameters, update and evaluation of many seeds.

Functions are written for one seed; `make_program` adds the seeds `S` as the outermost axis. All
that is random in a seed follows from its number.
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.studies import grid_world_data as data
from mbrl_jax import keys
from mbrl_jax.networks.initializers import uniform_fan_in
from mbrl_jax.types import Array, Key, PyTree, SequenceCore

CORES = ("mamba2", "mamba", "s5", "gru", "transformer")


@dataclasses.dataclass(frozen=True)
class Settings:
    """One run: a core, a length, and how it is trained."""

    core: str
    tokens: int
    updates: int
    batch: int
    learning_rate: float = 3e-3
    warmup: int = 100  # updates; a cosine to zero follows
    clip_norm: float = 1.0
    width: int = 128
    layers: int = 2


class State(NamedTuple):
    """What training changes."""

    params: PyTree
    opt: optax.OptState


class Program(NamedTuple):
    """Compiled lazily, over seeds [S]; states are donated to `update`."""

    init: Callable  # seeds [S] -> State[S]
    update: Callable  # (State[S], seeds [S], count) -> (State[S], loss [S])
    evaluate: Callable  # (State[S], seeds [S], count) -> (loss [S], Errors[S])


def make_core(settings: Settings) -> SequenceCore:
    """The core for one-hot tokens; a transformer attends to the whole sequence."""
    config = importlib.import_module(f"mbrl_jax.cores.{settings.core}").Config
    window = {"window": settings.tokens} if settings.core == "transformer" else {}
    return config(width=settings.width, layers=settings.layers, **window).make(data.VOCABULARY)


def optimiser(settings: Settings) -> optax.GradientTransformation:
    """Adam with a linear warm-up, a cosine decay and a bound on the gradient's norm."""
    rate = optax.warmup_cosine_decay_schedule(
        0.0, settings.learning_rate, settings.warmup, settings.updates
    )
    return optax.chain(optax.clip_by_global_norm(settings.clip_norm), optax.adam(rate))


def init(core: SequenceCore, optimise: optax.GradientTransformation, key: Key) -> State:
    """Parameters of the core and of the linear layer after it."""
    kernel = uniform_fan_in(core.width)(keys.named(key, "head"), (core.width, data.VOCABULARY))
    params = {"core": core.init(keys.named(key, "core")), "kernel": kernel}
    params["bias"] = jnp.zeros(data.VOCABULARY)
    return State(params, optimise.init(params))


def logits(core: SequenceCore, params: PyTree, sequence: Array) -> Array:
    """Predictions [T, V] of the tokens [T], row t from the tokens before t (none: zeros)."""
    seen = jax.nn.one_hot(sequence, data.VOCABULARY)
    inputs = jnp.concatenate([jnp.zeros_like(seen[:1]), seen[:-1]])
    _, outputs, _ = core.unroll(params["core"], None, inputs, jnp.zeros(len(sequence), bool))
    return outputs @ params["kernel"] + params["bias"]


def sample_batch(key: Key, num: int, tokens: int) -> Array:
    """Fresh sequences [B, T]."""
    return jax.vmap(lambda k: data.sample(k, tokens))(jax.random.split(key, num))


def batch_loss(core: SequenceCore, params: PyTree, batch: Array) -> Array:
    """Mean loss [] of the sequences [B, T]."""
    return jnp.mean(jax.vmap(lambda s: data.loss(logits(core, params, s), s))(batch))


def update(
    core: SequenceCore,
    optimise: optax.GradientTransformation,
    settings: Settings,
    state: State,
    seed: Array,
    count: Array,
) -> tuple[State, Array]:
    """One gradient step on a fresh batch; the loss [] before it."""
    key = keys.at(jax.random.key(seed), "train", count)
    batch = sample_batch(key, settings.batch, settings.tokens)
    value, gradient = jax.value_and_grad(batch_loss, argnums=1)(core, state.params, batch)
    change, opt = optimise.update(gradient, state.opt, state.params)
    return State(optax.apply_updates(state.params, change), opt), value


def evaluate(
    core: SequenceCore, num: int, tokens: int, state: State, seed: Array, count: Array
) -> tuple[Array, data.Errors]:
    """Loss and errors on `num` sequences [T] of a stream that training never draws from."""

    def one(sequence):
        prediction = logits(core, state.params, sequence)
        # The next token is known to be a cell, so actions are not offered.
        predicted = jnp.argmax(prediction[:, : data.FIRST_ACTION], axis=-1)
        return data.loss(prediction, sequence), data.errors(predicted, sequence)

    batch = sample_batch(keys.at(jax.random.key(seed), "evaluate", count), num, tokens)
    return jax.tree.map(jnp.mean, jax.vmap(one)(batch))


@functools.cache
def make_program(settings: Settings, eval_sequences: int) -> Program:
    """The functions above for many seeds at once; `count` is shared by all of them."""
    core, optimise = make_core(settings), optimiser(settings)
    start = functools.partial(init, core, optimise)
    step = functools.partial(update, core, optimise, settings)
    test = functools.partial(evaluate, core, eval_sequences, settings.tokens)
    return Program(
        init=jax.jit(jax.vmap(lambda seed: start(jax.random.key(seed)))),
        update=jax.jit(jax.vmap(step, (0, 0, None)), donate_argnums=0),
        evaluate=jax.jit(jax.vmap(test, (0, 0, None))),
    )


def num_params(state: State) -> int:
    """Parameters of one seed, out of a State[S]."""
    return sum(leaf[0].size for leaf in jax.tree.leaves(state.params))
