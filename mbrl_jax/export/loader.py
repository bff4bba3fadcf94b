"""Loads an exported policy. Needs jax and numpy, and nothing else of mbrl_jax.

This file stands in every exported policy; see the README there.
"""

import json
import zipfile
from typing import Any

import jax
import numpy as np

PROGRAM, NUMBERS, SPEC = "policy.stablehlo", "numbers.npz", "spec.json"


class Policy:
    """Acts in one environment at a time; what it remembers is the `carry` that it hands out."""

    def __init__(self, spec: dict[str, Any], parameters: list, start: list, program: Any):
        """Used by `load`."""
        self.spec = spec  # observation and action, by shape and dtype; see the README
        self._parameters, self._start = parameters, start
        self._program = jax.jit(program)

    def start(self, seed: int = 0) -> list:
        """Where every episode may begin: a carry, with the random numbers of a seed in it."""
        key = np.array([0, seed % 2**32], np.uint32)
        return [key, *self._start]

    def step(
        self, carry: list, observation: Any, is_first: bool, reward: float = 0.0
    ) -> tuple[list, Any]:
        """One action for one observation.

        Args:
          carry: from `start`, or from the step before.
          observation: an array, or a dict of arrays, as `spec` says.
          is_first: whether an episode begins with it: then nothing before is remembered.
          reward: what the action before has brought.

        Returns (carry, action). Raises ValueError for an observation of another shape or dtype.
        """
        leaves = self._leaves(observation)
        said = np.float32(reward), np.bool_(is_first)
        *carry, action = self._program(self._parameters, carry, leaves, *said)
        return carry, action

    def _leaves(self, observation: Any) -> list:
        """The observation as a list of arrays, each of which is checked."""
        wanted = self.spec["observation"]
        if "shape" in wanted:
            wanted, observation = {"observation": wanted}, {"observation": observation}
        if not isinstance(observation, dict) or set(observation) != set(wanted):
            raise ValueError(f"the observation must be a dict of {', '.join(wanted)}")
        leaves = []
        for name, leaf in wanted.items():
            found = observation[name]
            found = found if isinstance(found, jax.Array) else np.asarray(found)
            if list(found.shape) != leaf["shape"] or str(found.dtype) != leaf["dtype"]:
                raise ValueError(
                    f"{name} is {found.dtype}{list(found.shape)}, and the policy was trained with "
                    f"{leaf['dtype']}{leaf['shape']}"
                )
            leaves.append(found)
        return leaves


def load(path: str) -> Policy:
    """The policy in a file that `mbrl_jax` has exported."""
    with zipfile.ZipFile(path) as archive:
        spec = json.loads(archive.read(SPEC))
        program = jax.export.deserialize(bytearray(archive.read(PROGRAM))).call
        with archive.open(NUMBERS) as file, np.load(file, allow_pickle=False) as data:
            parameters, start = (
                [data[name] for name in data.files if name.startswith(prefix)]
                for prefix in ("parameter_", "start_")
            )
    return Policy(spec, [jax.device_put(x) for x in parameters], start, program)
