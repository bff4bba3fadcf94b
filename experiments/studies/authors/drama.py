"""Drama's authors (realwenlongwang/drama e7b4041): their unmodified modules on a CPU.

bfloat16 and CUDA graphs are off, and so is the transformer's dropout. Their PPO does not run with
their transformer, whose imagination returns no old logits.
"""

import functools
import importlib
import json
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

from experiments.studies.authors import mamba_references, ours, problem, replayed
from experiments.studies.authors import recorded as rec
from experiments.studies.authors import stand_ins as si
from experiments.studies.authors.problem import Arrays, Sizes, Windows
from experiments.studies.authors.table import Side
from mbrl_jax.networks import running

ABSENT = ("kornia", "cv2", "wandb", "yacs", "tensorboardX", "torch.utils.tensorboard")
LOSSES = (  # in the order in which an update of theirs returns them
    *("reconstruction", "reward", "termination", "dynamics", "kl", "representation", "kl", "loss"),
)
CASES, precision, feed = replayed, si.precision, si.Feed()
code = types.SimpleNamespace()  # their modules, once they are imported


def connect(root: str) -> None:
    """Import their modules from a checkout; random draws come from `feed`."""
    si.install(root, dict.fromkeys(ABSENT, {}) | mamba_references.PACKAGES)
    mamba_references.connect()
    code.settings = (Path(root) / "config_files/train.yaml").read_text()
    for name in ("sub_models.world_models", "agents", "replay_buffer"):
        setattr(code, name.rpartition(".")[2], importlib.import_module(name))
    code.world_models.OneHotCategorical = feed.one_hot()
    code.agents.distributions = types.SimpleNamespace(Categorical=feed.categorical())
    code.lambda_return = code.agents.calc_lambda_return


def config(backbone: str, sizes: Sizes) -> Any:
    """Their `train.yaml` with the sizes given."""
    text = json.dumps(yaml.safe_load(code.settings))
    c = json.loads(text, object_hook=lambda fields: types.SimpleNamespace(**fields))
    c.BasicSettings.Use_amp = c.BasicSettings.Use_cg = False
    c.JointTrainAgent.BatchLength = sizes.positions
    model, agent = c.Models.WorldModel, c.Models.Agent
    model.Backbone, model.HiddenStateDim = backbone, sizes.width
    model.CategoricalDim = model.ClassDim = sizes.classes
    model.Encoder.Depth = model.Decoder.Depth = sizes.depth
    model.Reward.HiddenUnits = model.Termination.HiddenUnits = sizes.head
    model.Transformer.NumLayers = model.Mamba.n_layer = sizes.layers
    for learner in (agent.AC, agent.PPO):
        learner.Actor.HiddenUnits, learner.Critic.HiddenUnits = sizes.actor, sizes.critic
    return c


def world_model(one: ours.Setup, arrays: Arrays | None = None, large_steps: bool = False) -> Any:
    """Their world model, filled with `arrays` where there are some."""
    settings = config(one.backbone, one.sizes)
    if large_steps:
        model = settings.Models.WorldModel
        model.Laprop.LearningRate, model.Warmup_steps, model.Max_grad_norm = ours.LARGE_STEPS
    model = code.world_models.WorldModel(one.sizes.actions, settings, "cpu")
    model.tensor_dtype = torch.get_default_dtype()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model if arrays is None else rec.load(model, arrays)


def agent(one: ours.Setup, arrays: Arrays | None = None, normaliser: Any = None) -> Any:
    """Their behaviour, filled likewise."""
    kind = code.agents.PPOAgent if one.learner == "ppo" else code.agents.ActorCriticAgent
    found = kind(config(one.backbone, one.sizes), one.sizes.actions, "cpu")
    if normaliser is not None:
        seen = found.actor[0].ob_rms
        seen.count, seen.mean, seen.var = map(rec.tensor, normaliser)
    return found if arrays is None else rec.load(found, arrays)


# ------------------------------------------------------------------------------------- world model


def shapes(one: ours.Setup, part: str) -> dict[str, tuple[int, ...]]:
    """Of the tensors of a "world model" or "behaviour", by name."""
    return rec.shapes_of(world_model(one) if part == "world model" else agent(one))


def forward(one: ours.Setup, arrays: Arrays, key: Any, rows: Windows) -> Side:
    """As `ours.forward`."""
    model, side = world_model(one, arrays), {}
    frame, action, _, _ = rec.rows_of(rows)
    for mode in ("training", "evaluation"):
        feed.uniforms.append(problem.window_uniforms(key, *rows.reward.shape, one.sizes.classes))
        model.train(mode == "training")
        encoded = model.encoder(frame)
        posterior = model.dist_head.forward_post(encoded)
        flat = model.flatten_sample(model.stright_throught_gradient(posterior))
        mask = ()
        if one.backbone == "Transformer":
            mask = (code.world_models.get_subsequent_mask(flat),)
        core = model.sequence_model(flat, action, *mask)
        reward = model.reward_decoder(core)
        found = {
            "encoder": encoded,
            "posterior": posterior,
            "samples": flat,
            "decoder": model.image_decoder(flat).permute(0, 1, 3, 4, 2),
            "core": core,
            "prior": model.dist_head.forward_prior(core),
            "reward logits": reward,
            "reward": model.symlog_twohot_loss_func.decode(reward),
            "end logit": model.termination_decoder(core),
        }
        side |= {f"forward, {mode}/{name}": rec.numbers(x) for name, x in found.items()}
        if mode == "training":
            stats = ours.world_state(one, rec.state_of(model)).stats
            side["running statistics/after a pass"] = ours.by_name(stats)
    return side


def world_model_updates(
    one: ours.Setup,
    arrays: Arrays,
    keys: Sequence[Any],
    batches: Sequence[Windows],
    large_steps: bool = False,
) -> Side:
    """As `ours.world_model_updates`."""
    model, logged, states = world_model(one, arrays, large_steps), [], []
    with rec.gradients_of(model) as grads:
        for key, rows in zip(keys, batches, strict=True):
            shape = rows.reward.shape
            feed.uniforms.append(problem.window_uniforms(key, *shape, one.sizes.classes))
            losses = model.update(*rec.rows_of(rows), global_step=1, epoch_step=0)
            logged.append(dict(zip(LOSSES, losses, strict=True)))
            states.append(rec.state_of(model))
    side = {
        f"losses/{name}": np.asarray([x[name] for x in logged]) for name in dict.fromkeys(LOSSES)
    }
    to_state = functools.partial(ours.world_state, one)
    return side | rec.trees(to_state, arrays, grads, states)


# --------------------------------------------------------------------------------------- behaviour


def _feed_imagination(one: ours.Setup, draws: problem.Draws) -> None:
    """Wait with draws in the order in which theirs are used; what stands at 0.5 goes unused."""
    behind = np.full_like(draws.context, 0.5)
    behind[:, -1] = draws.expected
    at_once = [behind] if one.backbone != "Transformer" else rec.by_step(behind)
    feed.uniforms.extend([draws.context, *at_once, *rec.by_step(draws.imagined)])
    feed.gumbels.extend(rec.by_step(draws.gumbels))


def _imagine(model: Any, learner: Any, one: ours.Setup, key: Any, rows: Windows) -> tuple:
    """(latents, actions, old logits, rewards, ends) by the learner's policy behind contexts."""
    _feed_imagination(one, problem.behaviour_draws(key, one.sizes, one.learner))
    imagine = model.imagine_data if one.backbone == "Transformer" else model.imagine_data2
    frame, action, _, _ = rec.rows_of(rows)
    with torch.no_grad():
        found = imagine(
            learner.eval(), frame, action, one.sizes.starts, one.sizes.horizon, False, None, 0
        )
    feed.check_empty()
    latent, action, logits, _, reward, end = found
    return latent.clone(), action.clone(), logits, reward.clone(), end.clone()


def behaviour_updates(
    one: ours.Setup,
    world: Arrays,
    arrays: Arrays,
    normaliser: Sequence[np.ndarray],
    keys: Sequence[Any],
    contexts: Sequence[Windows],
) -> Side:
    """As `ours.behaviour_updates`."""
    model, learner = world_model(one, world).eval(), agent(one, arrays, normaliser)
    returns, logged, states, side = [], [], [], {}

    def lambda_return(*args):  # theirs is float32 unless told otherwise
        returns.append(code.lambda_return(*args, dtype=torch.get_default_dtype()))
        return returns[-1]

    code.agents.calc_lambda_return = lambda_return
    with rec.gradients_of(learner) as grads:
        for key, rows in zip(keys, contexts, strict=True):
            latent, action, logits, reward, end = _imagine(model, learner, one, key, rows)
            if not logged:
                found = {"features": latent, "actions": action, "rewards": reward, "ends": end}
                side |= {f"imagination/{name}": rec.numbers(x) for name, x in found.items()}
            log: dict[str, float] = {}
            keep = types.SimpleNamespace(log=lambda name, x, global_step: log.update({name: x}))  # noqa: B023
            learner.update(latent, action, logits, None, None, None, reward, end, keep, 0)
            log |= {"low": learner.lowerbound_ema.scalar, "high": learner.upperbound_ema.scalar}
            logged.append({name.rpartition("/")[2]: float(x) for name, x in log.items()})
            states.append(rec.state_of(learner))
    first = ("critic", "slow critic") if one.learner == "ppo" else ("slow critic", "critic")
    side |= {f"returns/{name}": rec.numbers(x) for name, x in zip(first, returns, strict=False)}
    values = {name: np.asarray([x[name] for x in logged]) for name in logged[0]}
    entropy, actor = -values["entropy_loss"], values["policy_loss"]
    side |= {
        "losses/actor": actor,
        "losses/critic": values["total_loss"] - actor + learner.entropy_coef * entropy,
        "losses/entropy": entropy,
        "returns/low and high": np.stack([values["low"], values["high"]]),
    }
    seen = learner.actor[0].ob_rms
    pairs = zip(running.Running._fields, (seen.count, seen.mean, seen.var), strict=True)
    side |= {f"normaliser/{name}": rec.numbers(x) for name, x in pairs}
    to_state = functools.partial(ours.behaviour_state, one, normaliser=normaliser)
    return side | rec.behaviour_trees(to_state, arrays, grads[0], states)


# ------------------------------------------------------------------------------- replay, beginnings


def sampling(counts: Sequence[np.ndarray], filled: int, stream: str, num: int, length: int) -> Side:
    """Probabilities of window starts, with counts [capacity] of both streams in the replay."""
    settings = config("Mamba2", Sizes())
    settings.JointTrainAgent.BufferMaxLength = len(counts[0])
    buffer = code.replay_buffer.ReplayBuffer(settings, device="cpu")
    buffer.length, buffer.last_pointer = filled, filled - 1
    buffer.sampled_counter, buffer.imagined_counter = (torch.from_numpy(x.copy()) for x in counts)
    with rec.multinomials() as found:
        buffer.sample(num, length, imagine=stream == "imagine")
    return {f"sampling/{stream}": found[0]}


def initial(one: ours.Setup, part: str, seed: int) -> Arrays:
    """The state dict of a fresh "world model" or "behaviour"."""
    torch.manual_seed(seed)
    return rec.state_of(world_model(one) if part == "world model" else agent(one))
