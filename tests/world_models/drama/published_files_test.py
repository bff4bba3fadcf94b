"""torch's files are read without torch, and nothing in them can run code.

The files are written here, opcode by opcode as torch does; where torch is installed, it writes too.
"""

import collections
import pickle
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.errors import ConfigError
from mbrl_jax.world_models.drama.published_files import load_published, read_state_dict
from tests.world_models.drama import published_layout

STORAGES = {"f4": "FloatStorage", "f8": "DoubleStorage", "f2": "HalfStorage", "i8": "LongStorage"}


class Global:
    """A name that the pickle asks for."""

    def __init__(self, module, name):
        self.line = f"{module}\n{name}\n".encode()

    def __call__(self):
        """Only so that it may stand for a function."""


class Tensor:
    """What is pickled as torch pickles a tensor."""

    def __init__(self, storage, key, size, stride, offset=0, kind="FloatStorage"):
        self.storage, self.key, self.kind = storage, key, kind
        self.layout = offset, tuple(size), tuple(stride)

    def __reduce__(self):
        offset, size, stride = self.layout
        arguments = (Storage(self), offset, size, stride, False, collections.OrderedDict())
        return Global("torch._utils", "_rebuild_tensor_v2"), arguments


class Storage:
    """A storage, which torch keeps outside of the pickle."""

    def __init__(self, tensor):
        self.tensor = tensor


class Writer(pickle._Pickler):
    """Writes names without importing them."""

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Global):
            self.write(pickle.GLOBAL + obj.line)
        else:
            super().save(obj, save_persistent_id)

    def persistent_id(self, obj):
        if isinstance(obj, Storage):
            t = obj.tensor
            return ("storage", Global("torch", t.kind), t.key, "cuda:0", len(t.storage))
        return None


def _write(path, state, byte_order=None, compression=zipfile.ZIP_STORED):
    """A file of tensors by name, or of anything else."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        with archive.open("model/data.pkl", "w") as file:
            Writer(file, protocol=2).dump(state)
        if byte_order:
            archive.writestr("model/byteorder", byte_order)
        tensors = state.values() if isinstance(state, dict) else ()
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                archive.writestr(f"model/data/{tensor.key}", tensor.storage.tobytes())
        archive.writestr("model/version", "3\n")


def _tensors(arrays):
    """Tensors of contiguous arrays."""
    found = collections.OrderedDict()
    for i, (name, array) in enumerate(arrays.items()):
        stride = np.array(array.strides) // array.itemsize
        kind = STORAGES[array.dtype.str[1:]]
        flat = np.ravel(array)
        found[name] = Tensor(flat, str(i), array.shape, stride.tolist(), kind=kind)
    return found


def test_tensors_are_read_as_they_were_written(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "matrix": rng.normal(size=(3, 5)).astype(np.float32),
        "double": rng.normal(size=4),
        "half": rng.normal(size=(2, 2, 2)).astype(np.float16),
        "count": np.array(7, np.int64),
        "empty": np.zeros((0, 3), np.float32),
    }
    _write(tmp_path / "model.pth", _tensors(arrays))
    found = read_state_dict(tmp_path / "model.pth")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_strides_and_offsets_are_followed(tmp_path):
    numbers = np.arange(12, dtype=np.float32)
    _write(
        tmp_path / "model.pth",
        {
            "transposed": Tensor(numbers, "0", (4, 3), (1, 4)),
            "part": Tensor(numbers, "1", (2, 2), (4, 1), offset=5),
        },
    )
    found = read_state_dict(tmp_path / "model.pth")
    np.testing.assert_array_equal(found["transposed"], numbers.reshape(3, 4).T)
    np.testing.assert_array_equal(found["part"], [[5, 6], [9, 10]])


@pytest.mark.parametrize("order, dtype", [("little", "<f4"), ("big", ">f4")])
def test_the_byte_order_is_followed(tmp_path, order, dtype):
    numbers = np.array([1.0, -2.5], dtype)
    tensor = Tensor(numbers, "0", (2,), (1,))
    _write(tmp_path / "model.pth", {"x": tensor}, byte_order=order)
    np.testing.assert_array_equal(read_state_dict(tmp_path / "model.pth")["x"], [1.0, -2.5])


def test_bfloat16_is_read(tmp_path):
    numbers = np.array([1.0, -2.5, 0.1], jnp.bfloat16)
    tensor = Tensor(numbers, "0", (3,), (1,), kind="BFloat16Storage")
    _write(tmp_path / "model.pth", {"x": tensor})
    found = read_state_dict(tmp_path / "model.pth")["x"].astype(np.float32)
    np.testing.assert_array_equal(found, numbers.astype(np.float32))


class Call:
    """A pickle that calls what is named."""

    def __init__(self, module, name, *arguments):
        self.call = Global(module, name), arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "state, sentence",
    [
        ({"x": Call("os", "system", "true")}, "asks for os.system"),
        ({"x": Call("builtins", "eval", "1")}, "asks for builtins.eval"),
        ({"x": Call("numpy", "load", "x")}, "asks for numpy.load"),
        ({"x": Call("torch", "load", "x")}, "asks for torch.load"),
        ({"x": Call("torch._utils", "_rebuild_parameter")}, "_rebuild_parameter, which is not"),
        (
            {"x": Call("mbrl_jax.world_models.drama.published_files", "load_published")},
            "which is not read",
        ),
        ({"x": Call("torch._utils", "_rebuild_tensor_v2", 1, 2, 3, 4)}, "is damaged"),
        ({"x": 1.0}, "holds no state dict"),
        ([1, 2], "holds no state dict"),
    ],
)
def test_whatever_is_no_tensor_is_refused(tmp_path, state, sentence):
    _write(tmp_path / "model.pth", state)
    with pytest.raises(ConfigError, match=sentence):
        read_state_dict(tmp_path / "model.pth")


@pytest.mark.parametrize(
    "layout, sentence",
    [
        (dict(size=(5,), stride=(1,)), "lies on 4 numbers"),
        (dict(size=(2,), stride=(4,)), "is damaged"),
        (dict(size=(2,), stride=(1,), offset=3), "is damaged"),
        (dict(size=(2,), stride=(-1,)), "is damaged"),
        (dict(size=(1000, 1000), stride=(0, 0)), "lies on 4 numbers"),
    ],
)
def test_tensors_beyond_their_storage_are_refused(tmp_path, layout, sentence):
    numbers = np.arange(4, dtype=np.float32)
    _write(tmp_path / "model.pth", {"x": Tensor(numbers, "0", **layout)})
    with pytest.raises(ConfigError, match=sentence):
        read_state_dict(tmp_path / "model.pth")


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "model.pth"
    with pytest.raises(ConfigError, match="no such file"):
        read_state_dict(path)
    path.write_bytes(pickle.dumps({"x": 1}))
    with pytest.raises(ConfigError, match="no state dict saved by torch"):
        read_state_dict(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/version", "3\n")
    with pytest.raises(ConfigError, match="it has no data.pkl"):
        read_state_dict(path)
    tensor = Tensor(np.zeros(1000, np.float32), "0", (1000,), (1,))
    _write(path, {"x": tensor}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ConfigError, match="compressed"):
        read_state_dict(path)
    _write(path, {"x": tensor})
    cut = path.read_bytes()[:2000]
    path.write_bytes(cut)
    with pytest.raises(ConfigError, match="no state dict saved by torch"):
        read_state_dict(path)


def test_a_published_file_is_loaded(tmp_path):
    checkpoint = published_layout.world_model("Mamba2", 6)
    _write(tmp_path / "world_model.pth", _tensors(checkpoint))
    published = load_published(tmp_path / "world_model.pth")
    kernel = published.state.params["encoder"]["Conv_0"]["kernel"]
    expected = checkpoint["encoder.backbone.0.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, expected)


def test_what_torch_saves_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).bfloat16()
    state = module.state_dict()  # with attributes of its own, which are left unread
    state["transposed"] = torch.arange(6.0).reshape(2, 3).T
    torch.save(state, tmp_path / "model.pth")
    found = read_state_dict(tmp_path / "model.pth")
    assert list(found) == list(state)
    for name, tensor in state.items():
        np.testing.assert_array_equal(found[name].astype(np.float64), tensor.double().numpy())


def _raw(path, pickled, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("model/data.pkl", pickled)


@pytest.mark.parametrize(
    "pickled, sentence",
    [
        (b"\x80\x02}r\xff\xff\xff\x7f.", "it keeps something in place 2147483647"),
        (b"\x80\x02}p99999999\n.", "it keeps something in place 99999999"),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x0fx.", "is damaged"),
        (b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xffx.", "is damaged"),
        (b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xff}.", "damaged|state dict"),
        (b"\x80\x02" + 100_000 * b"(" + b".", "damaged|state dict"),
        (b"", "damaged|state dict"),
        (b"\x80\x02}K\x01K\x02s.", "holds no state dict"),
    ],
)
def test_lengths_and_places_that_cannot_be_are_refused(tmp_path, pickled, sentence):
    _raw(tmp_path / "model.pth", pickled)
    with pytest.raises(ConfigError, match=sentence):
        read_state_dict(tmp_path / "model.pth")


def test_a_directory_and_numbers_beyond_64_bits(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_published(tmp_path)
    numbers = np.arange(4, dtype=np.float32)
    for layout in (dict(offset=2**70), dict(stride=(2**70,)), dict(size=(2**70,))):
        tensor = Tensor(numbers, "0", **({"size": (2,), "stride": (1,)} | layout))
        _write(tmp_path / "model.pth", {"x": tensor})
        with pytest.raises(ConfigError):
            read_state_dict(tmp_path / "model.pth")


def test_what_unpacks_to_far_more_than_the_file_is_refused(tmp_path):
    path = tmp_path / "model.pth"
    _raw(path, b"\x80\x02" + 2**24 * b"0", zipfile.ZIP_DEFLATED)
    with pytest.raises(ConfigError, match="larger than 8388608 bytes"):
        read_state_dict(path)
    one = np.zeros(1000, np.float32)
    _write(path, {str(i): Tensor(one, "0", (1000,), (1,)) for i in range(1)})
    assert len(read_state_dict(path)) == 1
    shared = Tensor(one, "0", (1000,), (1,))
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("model/data.pkl", "w") as file:
            layouts = [Tensor(one, "0", (1000,), (1,)) for _ in range(100)]
            Writer(file, protocol=2).dump({str(i): each for i, each in enumerate(layouts)})
        archive.writestr("model/data/0", shared.storage.tobytes())
    with pytest.raises(ConfigError, match="larger than the file"):
        read_state_dict(path)
