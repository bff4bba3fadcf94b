"""Checks of arguments, in Python and before anything is traced."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

Array = jax.Array


def check_axes(**arrays: tuple[Array | None, str]) -> None:
    """Check that arrays agree about the sizes of named axes.

    Args:
      **arrays: name of the argument -> (array or None, axis letters such as "T H P"). The first
        argument that mentions a letter decides its size; None passes.

    Raises:
      ValueError: names the argument, its shape and what was expected.
    """
    sizes: dict[str, int] = {}
    for name, (array, axes) in arrays.items():
        if array is None:
            continue
        letters, shape = axes.split(), jnp.shape(array)
        agrees = len(shape) == len(letters) and all(
            sizes.get(letter, size) == size for letter, size in zip(letters, shape, strict=True)
        )
        if not agrees:
            known = ", ".join(f"{a} = {sizes[a]}" for a in letters if a in sizes)
            where = f" with {known} as in the arguments before it" if known else ""
            raise ValueError(
                f"`{name}` has shape {tuple(shape)}, "
                f"but [{', '.join(letters)}] was expected{where}."
            )
        sizes.update(zip(letters, shape, strict=True))


def check_reset(reset: Array | None) -> None:
    """Raise a ValueError unless `reset` is boolean or None."""
    if reset is not None and jnp.result_type(reset) != jnp.bool_:
        raise ValueError(
            f"`reset` has dtype {jnp.result_type(reset)}, but bool was expected: "
            "True where the state is emptied before the row."
        )


def check_chunking(length: int, chunk_size: int, method: str, methods: Sequence[str]) -> None:
    """Raise a ValueError for an empty sequence, a chunk size below 1 or an unknown method."""
    if length < 1:
        raise ValueError(f"The sequence has {length} rows, but at least 1 was expected.")
    if chunk_size < 1:
        raise ValueError(f"`chunk_size` is {chunk_size}, but at least 1 was expected.")
    if method not in methods:
        raise ValueError(f"`method` is {method!r}, but one of {', '.join(methods)} was expected.")
