"""Writes the policy of one seed as one file: StableHLO, parameters, specs, README and loader.

    python -m launch.export --workdir=runs/catch --out=catch.policy.zip

The program is `Agent.act` by `jax.export`, so that it needs neither the repository nor the
simulator; the parameters are its arguments. The package flatbuffers, with which `jax.export` reads,
is in the file. A file loads on the platforms that it was exported for.
"""

import importlib.metadata
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.envs.spec import first_timestep, spec_tree
from mbrl_jax.errors import ConfigError
from mbrl_jax.export import loader
from mbrl_jax.runs import files
from mbrl_jax.train.trained import TrainedPolicy, restore_policy
from mbrl_jax.types import (
    ActionSpec,
    ArraySpec,
    DictActionSpec,
    DiscreteSpec,
    EnvSpec,
    MultiDiscreteSpec,
)

README = """\
# A policy of mbrl_jax: {name} on {task}, seed {seed}, step {step}

Needs jax and numpy (written with jax {jax}; for {platforms}).

    import sys
    sys.path.insert(0, "{file}")    # the loader stands in this file
    from policy import load

    policy = load("{file}")
    carry = policy.start(seed=0)
    carry, action = policy.step(carry, observation, is_first=True)     # an episode begins
    carry, action = policy.step(carry, observation, is_first=False, reward=reward)

observation: {observation}
action: {action}

`spec.json` says the same. The policy acts {how}.
"""


class Exported(NamedTuple):
    """What was written."""

    path: Path
    size: int  # bytes
    step: int  # of the checkpoint


def export_policy(
    directory: str | Path,
    path: str | Path,
    seed_index: int = 0,
    which: str | int = "newest",
    *,
    explore: bool = False,
    platforms: Sequence[str] | None = None,
) -> Exported:
    """Write the policy of one seed of a run to one file.

    Args:
      directory: the workdir.
      path: the file to write.
      seed_index: member of the run.
      which: "newest", "best" in training return, or an iteration.
      explore: sample actions instead of taking the best.
      platforms: of `jax.export`, such as ("cpu", "cuda"); by default the one that this runs on.
        Kernels are chosen for the one that this runs on.

    Raises ConfigError where there is no such seed or checkpoint.
    """
    trained = restore_policy(directory, seed_index, which)
    step, leaves, start = _as_function(trained, explore)
    shapes = [_shape(x) for x in leaves], *_other_shapes(trained.system.env.spec, start)
    # Optimiser states and critics act in nothing: what the program does not read is left out.
    kept = jax.export.export(jax.jit(step))(*shapes).module_kept_var_idx
    used = [i for i in kept if i < len(leaves)]

    def of_used(numbers, *args):
        given = dict(zip(used, numbers, strict=True))
        unread = (jnp.zeros(x.shape, x.dtype) for x in shapes[0])
        return step([given.get(i, x) for i, x in enumerate(unread)], *args)

    read = [shapes[0][i] for i in used], *shapes[1:]
    program = jax.export.export(jax.jit(of_used), platforms=platforms)(*read)
    path = Path(path)
    numbers: dict[str, np.ndarray] = {}
    for name, arrays in (("parameter", [leaves[i] for i in used]), ("start", start)):
        numbers |= {f"{name}_{i}": np.asarray(x) for i, x in enumerate(arrays)}
    spec = _described(trained.system.env.spec)
    entries = _flatbuffers() | {
        loader.PROGRAM: bytes(program.serialize()),
        loader.SPEC: json.dumps(spec, indent=1).encode(),
        "policy.py": Path(loader.__file__).read_bytes(),
        "README.md": _readme(trained, spec, program.platforms, path, explore).encode(),
    }
    files.write_whole(path, lambda file: _write(file, entries, numbers))
    return Exported(path, path.stat().st_size, trained.step)


def _as_function(trained: TrainedPolicy, explore: bool) -> tuple[Callable, list, list]:
    """(step, leaves of the agent's state, leaves of the first carry).

    step(leaves, [key, *carry], observation leaves, reward, is_first) -> (key, *carry, action)
    """
    agent, spec = trained.system.agent, trained.system.env.spec
    leaves, tree = jax.tree.flatten(trained.state)
    start, carry_tree = jax.tree.flatten(agent.initial_carry())
    observation_tree = jax.tree.structure(spec_tree(spec.observation))

    def step(leaves, carry, observation, reward, is_first):
        key, use = jax.random.split(jax.random.wrap_key_data(carry[0], impl="threefry2x32"))
        timestep = first_timestep(jax.tree.unflatten(observation_tree, observation), spec.extras)
        timestep = timestep._replace(reward=reward, is_first=is_first)
        state, before = jax.tree.unflatten(tree, leaves), jax.tree.unflatten(carry_tree, carry[1:])
        after, action = agent.act(state, use, before, timestep, explore=explore)
        return jax.random.key_data(key), *jax.tree.leaves(after), action

    return step, leaves, start


def _shape(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(x), jnp.asarray(x).dtype)


def _other_shapes(spec: EnvSpec, start: list) -> tuple:
    """Of what `step` takes behind the leaves of the state."""
    return (
        [jax.ShapeDtypeStruct((2,), jnp.uint32), *map(_shape, start)],
        [
            jax.ShapeDtypeStruct(x.shape, x.dtype)
            for x in jax.tree.leaves(spec_tree(spec.observation))
        ],
        jax.ShapeDtypeStruct((), jnp.float32),
        jax.ShapeDtypeStruct((), jnp.bool_),
    )


def _described(spec: EnvSpec) -> dict[str, Any]:
    """Observation and action as JSON; a dictionary's leaves in the order of the program."""

    def leaf(x: ArraySpec) -> dict[str, Any]:
        return {"shape": list(x.shape), "dtype": x.dtype}

    observation, action = spec.observation, spec.action
    seen: dict[str, Any]
    if isinstance(observation, ArraySpec):
        seen = leaf(observation)
    else:  # JAX flattens dicts by their sorted names
        seen = {name: leaf(x) for name, x in sorted(observation.leaves)}
    return {"observation": seen, "action": _described_action(action)}


def _described_action(action: ActionSpec) -> dict[str, Any]:
    if isinstance(action, DictActionSpec):
        leaves = {name: _described_action(leaf) for name, leaf in action.leaves}
        return {"kind": "dictionary", "leaves": leaves}
    if isinstance(action, DiscreteSpec):
        return {"kind": "discrete", "num_actions": action.num_actions, "dtype": "int32"}
    if isinstance(action, MultiDiscreteSpec):
        return {"kind": "multi_discrete", "num_actions": action.num_actions, "dtype": "int32"}
    taken = {"kind": "bounded", "low": -1.0, "high": 1.0, "shape": [action.size]}
    return taken | {"dtype": "float32"}


def _readme(
    trained: TrainedPolicy, spec: dict, platforms: Sequence[str], path: Path, explore: bool
) -> str:
    return README.format(
        name=trained.experiment.name,
        task=getattr(trained.experiment.env, "name", "its environment"),
        seed=trained.seed,
        step=trained.step,
        jax=jax.__version__,
        platforms=", ".join(platforms),
        file=path.name,
        observation=json.dumps(spec["observation"]),
        action=json.dumps(spec["action"]),
        how="at random, as in training" if explore else "greedily",
    )


def _flatbuffers() -> dict[str, bytes]:
    """The package that `jax.export` reads files with, which jax itself does not bring.

    It is pure Python, under the Apache licence that its files name.
    """
    try:
        found = importlib.metadata.files("flatbuffers") or []
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(
            "exporting needs the package flatbuffers: pip install -c constraints.txt -e '.[export]'"
        ) from None
    kept = [file for file in found if file.suffix == ".py" or file.name == "METADATA"]
    return {str(file): Path(str(file.locate())).read_bytes() for file in kept}


def _write(file: BinaryIO, entries: dict[str, bytes], numbers: dict[str, np.ndarray]) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
        named: Any = numbers
        with archive.open(loader.NUMBERS, "w", force_zip64=True) as member:
            np.savez(member, **named)
