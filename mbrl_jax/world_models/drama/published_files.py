"""Checkpoints of the published PyTorch Drama, read without torch.

    published = load_published("ckpt/world_model.pth")
    model = bind(published.config.make(published.spec), published.state)
    behaviour_state = load_published_agent("ckpt/agent.pth", published)

A `.pth` file is a zip of raw arrays and of a pickle that says what they are. The pickle is read by
an unpickler that knows only the few names a state dict needs, and answers every other with an
error, so that a file from anywhere cannot run code.
"""

import collections
import io
import math
import pickle
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from mbrl_jax.behaviours import actor_critic
from mbrl_jax.errors import ConfigError
from mbrl_jax.types import EnvSpec, LearnerState
from mbrl_jax.world_models import drama
from mbrl_jax.world_models.drama.published import (
    actor_critic_state,
    behaviour_config,
    recognise,
    world_model_state,
)

STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
}


class Published(NamedTuple):
    """A published world model."""

    config: drama.Config
    spec: EnvSpec
    state: LearnerState

    @property
    def behaviour(self) -> actor_critic.Config:
        """The actor-critic that is trained in it, as published."""
        return behaviour_config(self.config.core)


def load_published(
    source: str | Path | Mapping[str, Any], config: drama.Config | None = None
) -> Published:
    """The world model of a published checkpoint; its optimiser state is fresh.

    Args:
      source: a `.pth` file of `torch.save(world_model.state_dict())`, or the state dict: arrays by
        name (of an `.npz`, say), or CPU tensors.
      config: None for the published one, as it is trained, whose backbone and number of actions
        are read off the weights; one with other sizes or switches otherwise.

    Raises ConfigError for a file that is none, or weights that do not fit.
    """
    tensors = _tensors(source)
    try:
        found, spec = recognise(tensors)
        config = found if config is None else config
        return Published(config, spec, world_model_state(config, spec, tensors))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def load_published_agent(
    source: str | Path | Mapping[str, Any],
    published: Published,
    config: actor_critic.Config | None = None,
) -> LearnerState:
    """The behaviour of a published checkpoint, for the model that `load_published` gave.

    Args:
      source: as there, of the agent.
      published: the world model that it was trained in.
      config: None for `published.behaviour`, the actor-critic, which has the same nets as PPO.

    Raises ConfigError for a file that is none, or weights that do not fit.
    """
    model = published.config
    size = model.groups * model.classes + model.core.width
    try:
        return actor_critic_state(
            config or published.behaviour, published.spec, size, _tensors(source)
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _tensors(source: str | Path | Mapping[str, Any]) -> dict[str, np.ndarray]:
    if isinstance(source, Mapping):
        return {name: np.asarray(tensor) for name, tensor in source.items()}
    return read_state_dict(source)


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Arrays by name of a state dict that `torch.save` wrote (torch 1.6 or later).

    Raises ConfigError for any other file, and for a pickle that asks for more than tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = _StateDictReader(archive).load()
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such file") from error
    except OSError as error:  # a directory, say
        raise ConfigError(f"{path} cannot be read ({error.strerror}); name a .pth file") from error
    except (zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise ConfigError(f"{path} is no state dict saved by torch: {error}") from error
    # RuntimeError: encrypted, or packed in another way. OverflowError: numbers beyond 64 bits.
    except (AttributeError, EOFError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is damaged: {error}") from error
    except (MemoryError, OverflowError, RecursionError, RuntimeError, zlib.error) as error:
        raise ConfigError(f"{path} is damaged: {error or type(error).__name__}") from error
    are_named = isinstance(found, dict) and all(isinstance(name, str) for name in found)
    if not (are_named and all(isinstance(x, np.ndarray) for x in found.values())):
        raise ConfigError(f"{path} holds no state dict, but something else made of tensors")
    return dict(found)


# --------------------------------------------------------------------------------------- private


class _RebuildTensor:
    """Stands for `torch._utils._rebuild_tensor_v2`; without a `__dict__` to be changed."""

    __slots__ = ("_spend",)

    def __init__(self, spend: Callable[[int], None]):
        self._spend = spend

    def __setstate__(self, state):
        raise pickle.UnpicklingError("it would change how tensors are read")

    def __call__(self, storage, offset, size, stride, *rest):
        del rest  # whether it wants a gradient, hooks
        if math.prod(size) > storage.size:  # no tensor of a state dict is an expanded one
            raise pickle.UnpicklingError(f"a tensor {size} lies on {storage.size} numbers")
        itemsize = storage.dtype.itemsize
        self._spend(itemsize * math.prod(size))
        strides = tuple(itemsize * step for step in stride)
        # numpy checks that shape and strides stay within the buffer.
        view = np.ndarray(tuple(size), storage.dtype, storage, itemsize * offset, strides)
        return view.copy()


_LARGEST_PICKLE = 2**23  # bytes of what names the tensors; Drama's has a hundredth of it
_LARGEST_MEMO = 2**20  # places: the C unpickler makes room for as many as it is told


def _check_memo(text: bytes) -> None:
    """Raise UnpicklingError for a memo that would exhaust memory."""
    import pickletools  # rarely needed

    for opcode, argument, _ in pickletools.genops(text):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > _LARGEST_MEMO:
            raise pickle.UnpicklingError(f"it keeps something in place {argument}")


class _StateDictReader(pickle.Unpickler):
    """Reads ordered dictionaries of tensors, and nothing else."""

    def __init__(self, archive: zipfile.ZipFile):
        names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(names) != 1:
            raise pickle.UnpicklingError("it has no data.pkl")
        self._archive, self._folder = archive, names[0].removesuffix("data.pkl")
        # Tied weights lie on the same numbers; nothing makes much more of them than there are.
        self._left = 4 * sum(entry.compress_size for entry in archive.infolist())
        text = self._read(names[0], _LARGEST_PICKLE)
        _check_memo(text)
        super().__init__(io.BytesIO(text))

    def _read(self, name: str, most: int) -> bytes:
        """A file of the archive, which may claim any size and unpack to a larger one."""
        with self._archive.open(name) as file:
            text = file.read(most + 1)
        if len(text) > most:
            raise pickle.UnpicklingError(f"{name} is larger than {most} bytes")
        return text

    def _spend(self, size: int) -> None:
        self._left -= max(size, 0)
        if self._left < 0:
            raise pickle.UnpicklingError("its tensors are larger than the file")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _RebuildTensor(self._spend)
        if module == "torch" and name in STORAGES:
            return name
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not read")

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, storage, key, _, size = pid  # the device it lay on does not matter
        if kind != "storage" or storage not in STORAGES:
            raise pickle.UnpicklingError(f"it asks for {kind!r} of {storage!r}")
        entry = self._archive.getinfo(f"{self._folder}data/{key}")
        if entry.compress_type != zipfile.ZIP_STORED:  # torch never compresses
            raise pickle.UnpicklingError("an array is compressed")
        dtype = np.dtype(STORAGES[storage]).newbyteorder(self._byte_order())
        array = np.frombuffer(self._archive.read(entry), dtype)
        if len(array) != size:
            raise pickle.UnpicklingError(f"an array has {len(array)} numbers instead of {size}")
        return array

    def _byte_order(self) -> str:
        """Of the machine that wrote; files without a word on it are little-endian."""
        try:
            order = self._read(f"{self._folder}byteorder", 16)
        except KeyError:
            order = b"little"
        return ">" if order == b"big" else "<"
