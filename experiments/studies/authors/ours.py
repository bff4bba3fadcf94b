"""Our side: the published experiment's world model and behaviour, given what `problem` makes.

Sizes and switches come from `experiments.drama_atari100k`, weights through the converter of
published checkpoints. Nothing here needs the authors' code.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import drama_atari100k
from experiments.studies.authors.problem import Arrays, Sizes, Windows, behaviour_key
from launch.flags import adjust_experiment
from mbrl_jax import distributions
from mbrl_jax.agents import parts as agent_parts
from mbrl_jax.behaviours import actor_critic, ppo
from mbrl_jax.experiment.config import flatten, override
from mbrl_jax.experiment.experiment import Experiment
from mbrl_jax.keys import named
from mbrl_jax.networks import running
from mbrl_jax.networks.norms import apply_with_stats
from mbrl_jax.replay import samplers
from mbrl_jax.types import DiscreteSpec, EnvSpec, Key, LearnerState, Step, Timestep, bind
from mbrl_jax.world_models import readouts
from mbrl_jax.world_models.drama import nets, published
from mbrl_jax.world_models.drama.published_files import load_published

# Learning rate, warm-up and clipping norm with which three updates move parameters visibly.
LARGE_STEPS = (1e-3, 2, 1.0)
CORES = {"Mamba2": "mamba2", "Mamba": "mamba", "Transformer": "storm"}  # by the authors' names


class Setup(NamedTuple):
    """The published system with one backbone and one learner."""

    experiment: Experiment
    spec: EnvSpec
    sizes: Sizes
    backbone: str  # by the authors' name
    learner: str  # "actor_critic" or "ppo"


def setup(backbone: str, sizes: Sizes, learner: str = "actor_critic", *more: str) -> Setup:
    """The published experiment with the sizes given; `more` are assignments as for `--set`.

    What is off on both sides is off: the integer buffer of CUDA graphs, and the dropout of the
    transformer, whose draws nobody can share.
    """
    core = CORES[backbone]
    experiment = adjust_experiment(
        drama_atari100k.get_experiment(),
        [
            *(f"model.core={core}", f"behaviour={learner}", f"model.core.width={sizes.width}"),
            *(f"model.core.layers={sizes.layers}", f"model.encoder.depth={sizes.depth}"),
            *(f"model.decoder.depth={sizes.depth}", f"model.groups={sizes.classes}"),
            *(f"model.classes={sizes.classes}", f"model.head_width={sizes.head}"),
            *(f"behaviour.actor_width={sizes.actor}", f"behaviour.critic_width={sizes.critic}"),
            *(f"behaviour.horizon={sizes.horizon}", f"agent.num_starts={sizes.starts}"),
            *([f"model.core.window={sizes.positions}"] if core == "storm" else []),
            *more,
        ],
        steps=None,
        debug=False,
    )
    seam = experiment.env.protocol.seam
    spec = EnvSpec(published.IMAGE, DiscreteSpec(sizes.actions), seam)
    return Setup(_switched_off(experiment), spec, sizes, backbone, learner)


def _switched_off(experiment: Experiment) -> Experiment:
    off = {"model.integer_buffer": "false", "model.core.dropout": "0"}
    there = flatten(experiment)
    return override(experiment, [f"{path}={to}" for path, to in off.items() if path in there])


def loaded(one: Setup, arrays: Arrays) -> Setup:
    """The same with the world model and the environment that `load_published` tells."""
    found = load_published(arrays)
    experiment = dataclasses.replace(one.experiment, model=found.config)
    return one._replace(experiment=_switched_off(experiment), spec=found.spec)


def with_large_steps(one: Setup) -> Setup:
    """The same with an optimiser whose first updates move parameters visibly."""
    names = ("learning_rate", "warmup", "clip_norm")
    settings = [f"model.optimiser.{name}={x}" for name, x in zip(names, LARGE_STEPS, strict=True)]
    return one._replace(experiment=override(one.experiment, settings))


def world_state(one: Setup, arrays: Arrays) -> LearnerState:
    """The world model's state from the authors' state dict."""
    return published.world_model_state(one.experiment.model, one.spec, arrays)


def behaviour_state(one: Setup, arrays: Arrays, normaliser: Sequence[Any]) -> LearnerState:
    """The behaviour's, with what its input normaliser has seen."""
    features = one.sizes.classes**2 + one.sizes.width
    config, seen = one.experiment.behaviour, running.Running(*map(jnp.asarray, normaliser))
    state = published.actor_critic_state(config, one.spec, features, arrays)
    steps = config.epochs * config.num_minibatches if one.learner == "ppo" else 1
    opt = actor_critic.make_parts(config, one.spec, steps).optimiser.init(state.params)
    return state._replace(stats=state.stats._replace(features=seen), opt=opt)


def by_name(tree: Any) -> Arrays:
    """Leaves by their paths."""
    found = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in found}


def trajectory(rows: Windows, arrival: bool = False) -> Step:
    """Rows in our convention: what an action brought stands in the row that it led to.

    Args:
      rows: [B, L].
      arrival: add the row that the last action led to, with some frame.
    """
    none = np.zeros((len(rows.reward), 1), np.float32)
    frame, action, reward, end = rows
    if arrival:
        frame, action = (np.concatenate([x, x[:, -1:]], 1) for x in (frame, action))
    length = frame.shape[1]
    reward, end = (np.concatenate([none, x], 1)[:, :length] for x in (reward, end))
    first = end > 0  # with the merged seam the row behind an end is a first one
    first[:, 0] = True
    timestep = Timestep(frame, reward, first, np.zeros_like(first), end > 0)
    return jax.tree.map(jnp.asarray, Step(timestep, action.astype(np.int32)))


# ------------------------------------------------------------------------------------- world model


@functools.partial(jax.jit, static_argnums=(0, 4))
def _pass(parts: nets.Parts, state: LearnerState, key: Key, batch: Step, train: bool) -> tuple:
    params, frame = state.params, batch.timestep.observation
    num, length = batch.timestep.reward.shape
    encoded, encoder_stats = readouts.encode(parts, params, state.stats, frame, train)
    posterior, _ = nets.posterior(parts, params, state.stats, frame, train)
    keys = jax.vmap(lambda k: jax.random.split(k, length))(jax.random.split(key, num))
    samples = jax.vmap(jax.vmap(readouts.sample))(keys, posterior)
    raw, decoder_stats = apply_with_stats(
        parts.decoder, params["decoder"], state.stats["decoder"], samples, train
    )
    resets = batch.timestep.is_first
    if parts.config.boundaries == "ignored":
        resets = jnp.zeros_like(resets).at[:, 0].set(True)
    unroll = functools.partial(parts.core.unroll, params["core"], None)
    _, outputs, _ = jax.vmap(unroll)(nets.core_input(parts, samples, batch.action), resets)
    reward = parts.reward.apply({"params": params["reward"]}, outputs)
    end = parts.termination.apply({"params": params["termination"]}, outputs)[..., 0]
    found = {
        "encoder": encoded,
        "posterior": posterior,
        "samples": samples,
        "decoder": jax.nn.sigmoid(raw),
        "core": outputs,
        "prior": nets.prior(parts, params, outputs),
        "reward logits": reward,
        "reward": distributions.two_hot_mean(reward),
        "end logit": end,
    }
    return found, {"encoder": encoder_stats, "decoder": decoder_stats}


def forward(one: Setup, state: LearnerState, key: Key, rows: Windows) -> dict[str, Any]:
    """All nets over windows, in training and, with the statistics of that, in evaluation mode."""
    parts = nets.make_parts(one.experiment.model, one.spec)
    batch, side = trajectory(rows), {}
    for mode in ("training", "evaluation"):
        found, stats = _pass(parts, state, key, batch, mode == "training")
        side |= {f"forward, {mode}/{name}": np.asarray(x) for name, x in found.items()}
        if mode == "training":
            state = state._replace(stats=stats)
            side["running statistics/after a pass"] = by_name(stats)
    return side


def world_model_updates(
    one: Setup, state: LearnerState, keys: Sequence[Key], batches: Sequence[Windows]
) -> dict[str, Any]:
    """Losses, gradients and parameters of updates, one for each batch."""
    model, scale = one.experiment.model.make(one.spec), one.experiment.model.representation_scale

    @jax.jit
    def update(state, key, batch):
        gradient = jax.value_and_grad(model.loss, has_aux=True)
        (_, (_, stats, metrics)), grads = gradient(state.params, state.stats, key, batch)
        state, norm = model.apply(state, grads, stats)
        return state, grads, metrics | {"model/gradient norm": (norm, jnp.ones(()))}

    # whether the model reads what the last action brought, as the published one does
    arrival = one.experiment.model.last_row == "arrival"
    side, logged = {}, []
    for i, (key, rows) in enumerate(zip(keys, batches, strict=True), start=1):
        state, grads, metrics = update(state, key, trajectory(rows, arrival))
        logged.append({name: float(total / n) for name, (total, n) in metrics.items()})
        if i in (1, len(keys)):
            side |= {
                f"gradients/update {i}": by_name(grads),
                f"parameters/after update {i}": by_name(state.params),
                f"running statistics/after update {i}": by_name(state.stats),
            }
    losses = {name: [one[f"model/{name}"] for one in logged] for name in LOSSES}
    losses["representation"] = [x / scale for x in losses["representation"]]
    return {f"losses/{name}": np.asarray(x) for name, x in losses.items()} | side


LOSSES = (
    *("reconstruction", "reward", "termination", "dynamics", "representation", "kl", "loss"),
    "gradient norm",
)


# --------------------------------------------------------------------------------------- behaviour


class Seen(NamedTuple):
    """One update of a behaviour, with what it went through."""

    state: LearnerState  # after it
    imagined: actor_critic.Imagined
    targets: actor_critic.Targets
    grads: Any  # of its first optimiser step
    metrics: dict[str, tuple]


def _first_gradient(one: Setup, parts: actor_critic.Parts, state: LearnerState, imagined: Any):
    """(gradient of the first optimiser step, targets)."""
    logits = parts.critic.apply({"params": state.params["critic"]}, imagined.features)
    targets, stats = actor_critic.make_targets(parts, state.stats, imagined, logits)
    if one.learner != "ppo":
        gradient = jax.grad(functools.partial(actor_critic.loss, parts), has_aux=True)
        return gradient(state.params, state.stats, imagined)[0], targets
    features = imagined.features[:, :-1]
    if parts.config.counts_passes:
        old = imagined.log_prob
        stats = actor_critic.take_in(parts, stats, features)
    else:
        distribution = actor_critic.policy(parts, state.params["actor"], state.stats, features)
        old = parts.choices.log_prob(distribution, imagined.actions)
    rows = ppo.Rows(features, imagined.actions, old, targets)
    rows = jax.tree.map(lambda x: x.reshape((-1, *x.shape[2:])), rows)
    gradient = jax.grad(functools.partial(ppo.loss, parts), has_aux=True)
    return gradient(state.params, stats, rows)[0], targets


@functools.cache  # for the same learner with another state
def _behaviour_update(one: Setup) -> Any:
    world_model = one.experiment.model.make(one.spec)
    config, agent = one.experiment.behaviour, one.experiment.agent
    behaviour, parts = config.make(one.spec), actor_critic.make_parts(config, one.spec)
    whole = agent_parts.make_parts(agent, one.spec, world_model, behaviour, None)

    @jax.jit
    def update(world: LearnerState, state: LearnerState, key: Key, contexts: Step) -> Seen:
        model = bind(world_model, world)
        starts = agent_parts.observe_contexts(whole, model, named(key, "observe"), contexts)
        keys = jax.random.split(named(key, "expect"), one.sizes.starts)
        latent = jax.vmap(model.imagine)(keys, starts.latent, contexts.action[:, -1])
        starts, own = starts._replace(latent=latent), behaviour_key(key)
        rollout = named(own, "imagine") if one.learner == "ppo" else own
        ready, imagined = actor_critic.imagine(parts, state, rollout, model, starts)
        grads, targets = _first_gradient(one, parts, ready, imagined)
        state, metrics = behaviour.update(state, own, model, starts, None, 0)
        return Seen(state, imagined, targets, grads, metrics)

    return update


def behaviour_updates(
    one: Setup,
    world: LearnerState,
    state: LearnerState,
    keys: Sequence[Key],
    contexts: Sequence[Windows],
) -> dict[str, Any]:
    """Imagination, returns, losses and updates, one for each set of contexts."""
    update, config, side, logged = _behaviour_update(one), one.experiment.behaviour, {}, []
    reward_rows = slice(-1) if config.rewards == "shifted" else slice(1, None)
    for i, (key, rows) in enumerate(zip(keys, contexts, strict=True), start=1):
        state, imagined, targets, grads, metrics = update(world, state, key, trajectory(rows))
        logged.append({name: float(total / n) for name, (total, n) in metrics.items()})
        logged[-1] |= {"low": float(state.stats.low), "high": float(state.stats.high)}
        if i == 1:
            reward, discount, _ = imagined.prediction
            side |= {
                "imagination/features": np.asarray(imagined.features),
                "imagination/actions": np.asarray(imagined.actions),
                "imagination/rewards": np.asarray(reward[:, reward_rows]),
                "imagination/ends": np.asarray(discount[:, reward_rows] < 0.5),
                "returns/critic": np.asarray(targets.live),
                "returns/slow critic": np.asarray(targets.slow),
                "gradients/first step": by_name(grads),
            }
        if i in (1, len(keys)):
            side |= {
                f"parameters/after update {i}": by_name(state.params),
                f"slow critic/after update {i}": by_name(state.stats.target_critic),
            }
    seen = state.stats.features
    side |= {f"normaliser/{name}": np.asarray(x) for name, x in seen._asdict().items()}
    return side | behaviour_losses(logged, config.entropy)


def behaviour_losses(logged: list[dict[str, float]], entropy: float) -> Arrays:
    """By update; the actor's without the bonus for entropy, as the authors log it."""

    def column(name):
        return np.asarray([one[f"behaviour/{name}"] for one in logged])

    found = {
        "losses/actor": column("actor_loss") + entropy * column("entropy"),
        "losses/critic": column("critic_loss"),
        "losses/entropy": column("entropy"),
    }
    low_and_high = np.asarray([[x["low"], x["high"]] for x in logged]).T
    return found | {"returns/low and high": low_and_high}


# ------------------------------------------------------------------------------- replay, beginnings


def sampling(counts: Sequence[np.ndarray], filled: int, stream: str, length: int) -> Arrays:
    """Probabilities of window starts, with counts [capacity] of both streams in the replay."""
    config = drama_atari100k.get_experiment().replay.sampler
    held = samplers.Counts(*(jnp.asarray(x)[:, None] for x in counts))
    score = samplers.dynamic_frequency_score(config, held, stream)[:, 0]
    return {f"sampling/{stream}": np.asarray(jax.nn.softmax(score[: filled - length + 1]))}


@functools.cache
def _fresh(one: Setup, part: str) -> Any:
    """Parameters of a fresh "world model" or "behaviour", as a function of a key."""
    features = jnp.zeros((one.sizes.classes**2 + one.sizes.width,))
    if part == "world model":
        model = one.experiment.model.make(one.spec)
        return jax.jit(lambda key: model.init(key).params)
    behaviour = one.experiment.behaviour.make(one.spec)
    return jax.jit(lambda key: behaviour.init(key, features).params)


def initial(one: Setup, part: str, seed: int) -> Arrays:
    """Fresh parameters by name."""
    return by_name(_fresh(one, part)(jax.random.key(seed)))


def params_of(one: Setup, part: str, arrays: Arrays) -> Arrays:
    """Parameters by the same names, from a state dict of the authors'."""
    if part == "world model":
        return by_name(world_state(one, arrays).params)
    features = one.sizes.classes**2 + one.sizes.width
    config = one.experiment.behaviour
    return by_name(published.actor_critic_state(config, one.spec, features, arrays).params)


def counts(one: Setup, part: str) -> Arrays:
    """How many numbers are learned, of a whole world model or of actor and critic."""
    found = jax.eval_shape(_fresh(one, part), jax.random.key(0))
    trees = {part: found} if part == "world model" else found
    sizes = {name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in trees.items()}
    return {f"counts of parameters/{name}": np.asarray(size) for name, size in sizes.items()}
