"""What lets the authors' unmodified PyTorch files run on a CPU, whichever system they are of.

Packages that only GPUs have, or that only log, are stood in for: their modules import, and whoever
calls something of them gets nothing useful. Two small packages are replaced by their definition:
torchtune's RMSNorm and pytorch_warmup's linear warm-up. Random draws are fed from outside, so that
both sides draw the same.
"""

import collections
import contextlib
import importlib.abc
import importlib.machinery
import sys
import types
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch._dynamo  # looks for triton, and must not find the one that stands in
from torch import nn
from torch.nn import functional as F

Tensor = torch.Tensor

# ----------------------------------------------------------------------------------------- imports


class _Anything:
    """Passes as a decorator, a function, a constant, a list; does nothing."""

    def __call__(self, *args: Any, **kwargs: Any) -> "_Anything":
        return self

    def __getattr__(self, name: str) -> "_Anything":
        return self

    def __getitem__(self, key: Any) -> "_Anything":
        return self

    def __iter__(self) -> Iterator:
        return iter((self,))

    __or__ = __mul__ = __rmul__ = __getitem__
    __le__ = __lt__ = __ge__ = __gt__ = lambda self, other: True


class _StandIn(types.ModuleType):
    """A module in which every name is found."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything()


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Answers imports of packages that are stood in for."""

    def __init__(self, packages: Mapping[str, Mapping[str, Any]]):
        self.packages = packages

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        known = any(name == one or name.startswith(f"{one}.") for one in self.packages)
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if known else None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        vars(module).update(self.packages.get(module.__name__, {}))


class RMSNorm(nn.Module):
    """torchtune 0.1.1's, by its definition (arXiv 1910.07467): x / √(mean x² + ε) · scale."""

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * (wide.square().mean(-1, keepdim=True) + self.eps).rsqrt()).to(x) * self.scale


class LinearWarmup:
    """pytorch_warmup 0.1.1's, by its definition: update k has the rate times min(1, k / period)."""

    def __init__(self, optimizer: torch.optim.Optimizer, warmup_period: int):
        self.optimizer, self.period, self.done = optimizer, warmup_period, 0
        self.dampen()

    def dampen(self) -> None:
        self.done += 1
        for group in self.optimizer.param_groups:
            group["lr"] *= min(1.0, self.done / self.period)


def install(root: str, packages: Mapping[str, Mapping[str, Any]]) -> None:
    """Let files of `root` be imported, with `packages` (attributes by module) stood in for."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    given = {
        "triton": {"__version__": "2.2.0", "cdiv": lambda a, b: -(-a // b)},
        "torchtune.modules": {"RMSNorm": RMSNorm},
        "pytorch_warmup": {"LinearWarmup": LinearWarmup},
        "line_profiler": {"profile": lambda function: function},
    }
    sys.meta_path.insert(0, _Finder(given | {"torchtune": {}} | dict(packages)))
    sys.path.insert(0, root)


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    **rest: Any,
) -> Tensor:
    """The causal-conv1d package by its definition: x [B, C, T], weight [C, W] -> [B, C, T]."""
    del rest  # indices and states of sequences that are cut in pieces
    channels, width = weight.shape
    y = F.conv1d(x, weight[:, None], bias, padding=width - 1, groups=channels)[..., : x.shape[-1]]
    return F.silu(y) if activation in ("silu", "swish") else y


def causal_conv1d_update(
    x: Tensor,
    state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """One row of it: x [B, C], state [B, C, W], which is changed."""
    state.copy_(torch.cat([state[..., 1:], x[..., None]], -1))
    y = (state * weight).sum(-1) + (0 if bias is None else bias)
    return F.silu(y) if activation in ("silu", "swish") else y


# --------------------------------------------------------------------------------------- precision


@contextlib.contextmanager
def precision(wide: bool) -> Iterator[torch.dtype]:
    """The dtype to build modules in; in float64 the authors' casts to float32 change nothing."""
    if not wide:
        yield torch.float32
        return
    to_float, to, default = Tensor.float, Tensor.to, torch.get_default_dtype()

    def stays(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        asked = [*args, kwargs.get("dtype")]
        if self.dtype == torch.float64 and any(one is torch.float32 for one in asked):
            return self
        return to(self, *args, **kwargs)

    Tensor.float = lambda self: self if self.dtype == torch.float64 else to_float(self)
    Tensor.to = stays
    torch.set_default_dtype(torch.float64)
    try:
        yield torch.float64
    finally:
        Tensor.float, Tensor.to = to_float, to
        torch.set_default_dtype(default)


# --------------------------------------------------------------------------------------- randomness


class Feed:
    """Draws that wait to be used, in order; samplers of torch that take them from here."""

    def __init__(self) -> None:
        self.uniforms: collections.deque[np.ndarray] = collections.deque()
        self.gumbels: collections.deque[np.ndarray] = collections.deque()

    def one_hot(self) -> type:
        """`OneHotCategorical` by inverse CDF: one uniform for each categorical."""
        feed = self

        class OneHot(torch.distributions.OneHotCategorical):
            def sample(self, sample_shape: Any = ()) -> Tensor:
                drawn = torch.as_tensor(feed.uniforms.popleft().copy(), dtype=self.probs.dtype)
                assert drawn.shape == self.probs.shape[:-1], (drawn.shape, self.probs.shape)
                index = (self.probs.cumsum(-1)[..., :-1] <= drawn[..., None]).sum(-1)
                return F.one_hot(index, self.probs.shape[-1]).to(self.probs.dtype)

        return OneHot

    def categorical(self) -> type:
        """`Categorical` by the largest sum of logit and Gumbel noise."""
        feed = self

        class Chosen(torch.distributions.Categorical):
            def sample(self, sample_shape: Any = ()) -> Tensor:
                drawn = torch.as_tensor(feed.gumbels.popleft().copy(), dtype=self.logits.dtype)
                assert drawn.shape == self.logits.shape, (drawn.shape, self.logits.shape)
                return (self.logits + drawn).argmax(-1)

        return Chosen

    def check_empty(self) -> None:
        """Raise RuntimeError where the authors drew less often than ours."""
        if self.uniforms or self.gumbels:
            raise RuntimeError("the authors' code left draws unused: it is another algorithm")
