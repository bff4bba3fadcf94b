"""Files of named arrays, .npz or HDF5: opened alike, written whole."""

import contextlib
import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mbrl_jax.runs import files
from mbrl_jax.runs.layout import as_path

SHIPPED = Path(__file__).resolve().parents[2]  # what lies beside the package

METADATA = "metadata/"  # in front of the names of what describes a file
DAMAGED = (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile)  # what reading raises


class Arrays(NamedTuple):
    """The named arrays of an open file; "a/b" is b in the group a."""

    path: Path
    names: tuple[str, ...]
    data: Mapping[str, Any]

    def get(self, name: str) -> np.ndarray:
        """An array, read whole. Raises ValueError where it is damaged or absent."""
        if name not in self.names:
            there = ", ".join(self.names[:20]) or "nothing"
            raise ValueError(f"{self.path} holds no {name!r}; it has {there}")
        try:
            return np.asarray(self.data[name][()])
        except DAMAGED as error:
            raise _damaged(self.path, error) from error


def existing(path: str) -> Path:
    """The path of a file or folder; what is shipped is found from any folder.

    Raises ValueError where there is none.
    """
    found = as_path(path)
    if not found.exists() and (SHIPPED / path).exists():
        return SHIPPED / path
    if not found.exists():
        raise ValueError(f"the data set {path} is not there")
    return found


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Arrays]:
    """Open an .npz file, or an HDF5 file of any other name.

    Raises ValueError for a file that is neither or is damaged, and without h5py for HDF5.
    """
    is_npz = path.suffix == ".npz"
    h5py: Any = None if is_npz else _h5py(path)
    with contextlib.ExitStack() as stack:
        try:
            if is_npz:  # opened here: NumPy leaves open what it cannot read
                file = np.load(stack.enter_context(path.open("rb")), allow_pickle=False)
                names = file.files
            else:
                file = h5py.File(path, "r")
                names = _datasets(file, h5py)
        except (*DAMAGED, AttributeError) as error:  # AttributeError: an .npy under that name
            raise _damaged(path, error) from error
        yield Arrays(path, tuple(names), stack.enter_context(file))


def _damaged(path: Path, error: Exception) -> ValueError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return ValueError(f"{path} cannot be read as a data set ({lines[0][:200]})")


def write(path: str | Path, arrays: Mapping[str, np.ndarray], hdf5: bool) -> None:
    """Write named arrays; the file is complete when this returns, or it is absent."""
    path = as_path(path)
    if not hdf5:
        files.write_arrays(path, arrays)
        return
    h5py = _h5py(path)

    whole = io.BytesIO()
    with h5py.File(whole, "w") as data:
        for name, array in arrays.items():
            data.create_dataset(name, data=_for_hdf5(array, h5py))
    files.write_whole(path, lambda file: file.write(whole.getbuffer()))


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What describes a file, by name: numbers and texts ("env_id", "reference_min", …).

    Raises ValueError where the file cannot be read.
    """
    with opened(existing(str(path))) as arrays:
        names = [name for name in arrays.names if name.startswith(METADATA)]
        return {name.removeprefix(METADATA): _plain(arrays.get(name)) for name in names}


def _plain(value: np.ndarray) -> Any:
    """A number or text of an array without axes; other arrays as they are."""
    value = value if value.ndim else value.item()
    return value.decode() if isinstance(value, bytes) else value


def _for_hdf5(array: np.ndarray, h5py) -> Any:
    """HDF5 knows no text of NumPy's."""
    array = np.asarray(array)
    return array.astype(h5py.string_dtype()) if array.dtype.kind == "U" else array


def _datasets(file, h5py) -> list[str]:
    """Names of all arrays of an HDF5 file."""
    found: list[str] = []

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            found.append(name)

    file.visititems(visit)
    return found


def _h5py(path: Path):
    """The module h5py (an optional dependency)."""
    try:
        import h5py
    except ImportError as error:
        raise ValueError(f"{path} needs h5py: pip install 'mbrl_jax[data]'") from error
    return h5py
