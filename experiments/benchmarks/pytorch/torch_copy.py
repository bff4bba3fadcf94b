"""Weights, windows and imagination starts of the JAX side, handed to the PyTorch side."""

import jax
import numpy as np
import torch
from torch import nn

from experiments.benchmarks.pytorch import torch_dreamer, torch_storm
from experiments.benchmarks.pytorch.torch_behaviour import Behaviour, Latent
from experiments.benchmarks.pytorch.torch_drama import Batch, Core, WorldModel
from mbrl_jax.cores import attention
from mbrl_jax.types import PyTree, Trajectory
from mbrl_jax.world_models import drama


def tensor(array: jax.Array) -> torch.Tensor:
    """A copy, where torch puts new tensors."""
    return torch.from_numpy(np.array(array)).to(torch.get_default_device())


def layers(params: PyTree, kernel_rank: int | None = None) -> list[PyTree]:
    """The layers with a kernel of that rank (None: those that only have a scale), in order.

    Flax numbers the layers of each class; one class for each kind of layer is assumed here.
    """

    def rank(layer):
        return layer["kernel"].ndim if "kernel" in layer else None

    chosen = [name for name, layer in params.items() if rank(layer) == kernel_rank]
    return [params[name] for name in sorted(chosen, key=lambda name: int(name.rpartition("_")[2]))]


def _set(parameter: torch.Tensor, value: jax.Array) -> None:
    with torch.no_grad():
        parameter.copy_(tensor(value))


def _linear(module: nn.Linear, params: PyTree) -> None:
    _set(module.weight, params["kernel"].T)
    if module.bias is not None:
        _set(module.bias, params["bias"])


def _of_class(module: nn.Module, *classes: type) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, classes)]


def _norms(modules: list[nn.Module], params: list[PyTree]) -> None:
    for module, layer in zip(modules, params, strict=True):
        _set(module.weight, layer["scale"])
        if "bias" in layer:
            _set(module.bias, layer["bias"])


def _mlp(module: nn.Sequential, params: PyTree) -> None:
    for linear, layer in zip(_of_class(module, nn.Linear), layers(params, 2), strict=True):
        _linear(linear, layer)
    _norms(_of_class(module, nn.RMSNorm, nn.LayerNorm), layers(params))


def _image_net(module: nn.Sequential, params: PyTree) -> None:
    """Kernels are [k, k, in, out] here; torch has [out, in, k, k], transposed [in, out, k, k]."""
    convolutions = _of_class(module, nn.Conv2d, nn.ConvTranspose2d)
    for convolution, layer in zip(convolutions, layers(params, 4), strict=True):
        order = (3, 2, 0, 1) if isinstance(convolution, nn.Conv2d) else (2, 3, 0, 1)
        _set(convolution.weight, layer["kernel"].transpose(order))
        if convolution.bias is not None:
            _set(convolution.bias, layer["bias"])
    for linear, layer in zip(_of_class(module, nn.Linear), layers(params, 2), strict=True):
        _linear(linear, layer)
    _norms(_of_class(module, nn.BatchNorm2d), layers(params))


def _core(core: Core, params: PyTree) -> None:
    _linear(core.stem[0], params["stem"])
    _set(core.stem[1].weight, params["stem_norm"]["scale"])
    _set(core.final_norm.weight, params["final_norm"]["scale"])
    for i, (norm, mixer) in enumerate(zip(core.norms, core.mixers, strict=True)):
        _set(norm.weight, params[f"norms_{i}"]["scale"])
        layer = params[f"mixers_{i}"]
        for name in ("conv_kernel", "conv_bias", "dt_bias", "a_log", "skip"):
            _set(getattr(mixer, name), layer[name])
        _set(mixer.norm.weight, layer["norm"]["scale"])
        _linear(mixer.in_proj, layer["in_proj"])
        _linear(mixer.out_proj, layer["out_proj"])


def _transformer(core: torch_storm.Core, params: PyTree) -> None:
    _set(core.positions, params["positions"])
    for name in ("stem", "stem_out"):
        _linear(getattr(core, name), params[name])
    names = ("stem_norm", "stem_out_norm", "input_norm")
    _norms([getattr(core, name) for name in names], [params[name] for name in names])
    for i, block in enumerate(core.blocks):
        layer = params[f"blocks_{i}"]
        for name, one in (layer["attention"] | {n: layer[n] for n in ("up", "down")}).items():
            _linear(getattr(block, name), one)
        names = ("attention_norm", "feed_forward_norm")
        _norms([getattr(block, name) for name in names], [layer[name] for name in names])


def copy_world_model(model: WorldModel, params: PyTree) -> None:
    """Give `model` the parameters of a `drama` world model."""
    _image_net(model.encoder, params["encoder"])
    _image_net(model.decoder, params["decoder"])
    _linear(model.posterior, params["posterior"]["Dense_0"])
    copy_core = _core if isinstance(model.core, Core) else _transformer
    copy_core(model.core, params["core"])
    for name in ("prior", "reward", "termination"):
        _mlp(getattr(model, name), params[name])


def copy_rssm(model: torch_dreamer.WorldModel, params: PyTree) -> None:
    """Give `model` the parameters of an `rssm` world model."""
    cell, gru = model.gru, params["gru"]
    for linear, layer in zip(cell.dense, layers(gru, 2), strict=True):
        _linear(linear, layer)
    _norms([*cell.norms, cell.inner_norm], layers(gru))
    for block, layer in zip((cell.inner, cell.gates), layers(gru, 3), strict=True):
        _set(block.kernel, layer["kernel"])
        _set(block.bias, layer["bias"])
    dense = {"decoder": params["decoder"]["Mlp_0"]}
    for name in ("encoder", "prior", "posterior", "reward", "termination", "decoder"):
        _mlp(getattr(model, name), dense.get(name, params[name]))


def copy_behaviour(behaviour: Behaviour | torch_dreamer.Behaviour, params: PyTree) -> None:
    """Give `behaviour` the parameters of an `actor_critic` or a `dreamer` behaviour."""
    _mlp(behaviour.actor, params["actor"])
    _mlp(behaviour.critic, params["critic"])
    _mlp(behaviour.slow_critic, params["critic"])


def to_batch(batch: Trajectory) -> Batch:
    """Windows [B, L+1]."""
    timestep = batch.timestep
    return Batch(
        tensor(timestep.observation),
        tensor(batch.action).long(),
        tensor(timestep.reward),
        tensor(timestep.is_terminal).float(),
    )


def to_vectors(batch: Trajectory) -> torch_dreamer.Batch:
    """Windows [B, L+1] of vectors."""
    return torch_dreamer.Batch(*to_batch(batch))


def to_latent(latent: drama.Latent) -> Latent:
    """Latents [M] of a model with a Mamba-2 core, whose states are [M, N, H, P], or STORM's."""
    first, *caches = latent.carry
    if caches and isinstance(caches[0], attention.Cache):
        rows = int(first[0])  # the same of all starts, fewer than the window: the ring's first
        kept = [tuple(tensor(x[:, :, :rows]) for x in (c.keys, c.values)) for c in caches]
        return Latent((rows, kept), tensor(latent.output), tensor(latent.sample))
    carry = [
        (
            list(tensor(layer.history).unbind(1)),
            tensor(layer.state).permute(0, 2, 3, 1).contiguous(),
        )
        for layer in latent.carry
    ]
    return Latent(carry, tensor(latent.output), tensor(latent.sample))
