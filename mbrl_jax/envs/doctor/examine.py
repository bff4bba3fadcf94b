"""The environment doctor: what an environment does, against what training takes for granted.

    from mbrl_jax.envs import doctor
    for finding in doctor.check(my_environment):
        ...

`python -m launch.doctor --env=…` prints the same. An environment is played with uniform actions in
a few lanes; every finding is a sentence that says what was seen and what to do about it. Findings
of severity "error" break training or make it learn something false; "warning" is what may be meant.
"""

from typing import Any

import numpy as np

from mbrl_jax import legal
from mbrl_jax.envs.doctor import functions, host, rows
from mbrl_jax.envs.doctor.rows import Finding, error, ok, reason, warning
from mbrl_jax.types import (
    ArraySpec,
    BoundedSpec,
    DictActionSpec,
    DictSpec,
    DiscreteSpec,
    Environment,
    EnvSpec,
    HostEnvironments,
    MultiDiscreteSpec,
)

STEPS = 2_000  # rows of each lane that are played
_DTYPES = ("float32", "float16", "bfloat16", "uint8", "int8", "int16", "uint16", "int32", "bool")


def check(
    env: Any, *, steps: int = STEPS, seed: int = 0, limits: tuple[float, float] | None = None
) -> list[Finding]:
    """Play an environment and say what is wrong with it.

    Args:
      env: an `Environment`, `HostEnvironments`, a config whose `make()` gives one, or a function
        without arguments that gives any of these.
      steps: rows of each lane that are played; fewer where rows are large. Episodes that are longer
        count as never ending.
      seed: of actions and environment.
      limits: (lowest, highest) number that an observation may hold, if there are such.

    Returns:
      At least one finding for each topic that could be looked at, the errors first.
    """
    found = _made(env)
    if isinstance(found, Finding):
        return [found]
    findings = check_spec(found.spec)
    if not count_errors(findings):
        on_host = isinstance(found, HostEnvironments)
        played = (host if on_host else functions).play(found, steps, seed)
        findings += played.findings
        if played.rows is not None:
            looked_at = rows.Rows(found.spec, played.rows, limits)
            findings += rows.check_rows(looked_at)
    return sorted(findings, key=lambda f: ("error", "warning", "ok").index(f.severity))


def _made(env: Any) -> Environment | HostEnvironments | Finding:
    """The record of functions."""
    try:
        while not isinstance(env, Environment | HostEnvironments):
            if not (hasattr(env, "make") or callable(env)):
                return error(
                    "build",
                    f"a {type(env).__name__} is no environment: give an Environment, "
                    "HostEnvironments, or a config or function that makes one",
                )
            env = env.make() if hasattr(env, "make") else env()
    except Exception as caught:  # whatever a user's own code may raise
        return error("build", f"it cannot be built: {reason(caught)}")
    return env


def check_spec(spec: Any) -> list[Finding]:
    """Findings on the description: what the parts of an agent are built from."""
    if not isinstance(spec, EnvSpec):
        return [error("spaces", f"its spec is a {type(spec).__name__} and not an EnvSpec")]
    try:
        hash(spec)
    except TypeError:
        return [
            error("spaces", "its spec cannot be hashed: write the shape as a tuple of integers")
        ]
    found = [*_check_observation_spec(spec.observation), *_check_action_spec(spec.action)]
    return found if count_errors(found) else [*found, *_check_mask(spec)]


def _check_mask(spec: EnvSpec) -> list[Finding]:
    try:
        legal.require_mask(spec)
    except ValueError as caught:
        return [error("action", str(caught))]
    return []


def _check_observation_spec(spec: Any) -> list[Finding]:
    if isinstance(spec, DictSpec):
        return [finding for _, leaf in spec.leaves for finding in _check_observation_spec(leaf)]
    if not isinstance(spec, ArraySpec):
        what = "an ArraySpec(shape, dtype), nor a DictSpec of some"
        return [error("spaces", f"its observation is {spec!r} and not {what}")]
    found = []
    if not spec.shape or any(not isinstance(n, int) or n < 1 for n in spec.shape):
        found.append(
            error(
                "spaces",
                f"an observation of shape {spec.shape} cannot be encoded: it takes a tuple of at "
                "least one positive integer; give a single number the shape (1,)",
            )
        )
    if spec.dtype not in _DTYPES:
        known = ", ".join(_DTYPES)
        found.append(
            error(
                "spaces",
                f"observations of dtype {spec.dtype!r} cannot be stored; cast them to one of "
                f"{known}",
            )
        )
    return found or [ok("spaces", f"observations are {spec.dtype} of shape {spec.shape}")]


def _check_action_spec(spec: Any) -> list[Finding]:
    if isinstance(spec, DictActionSpec):
        found = {name: _check_action_spec(leaf) for name, leaf in spec.leaves}
        return [
            one._replace(sentence=f"{name}: {one.sentence}")
            for name, findings in found.items()
            for one in findings
        ]
    if isinstance(spec, DiscreteSpec):
        size, what = spec.num_actions, "discrete actions"
    elif isinstance(spec, MultiDiscreteSpec):
        size, what = len(spec.num_actions), "discrete choices at once"
    elif isinstance(spec, BoundedSpec):
        size, what = spec.size, "numbers between -1 and 1 as action"
    else:
        return [
            error(
                "action",
                f"its action is {spec!r}: use a DiscreteSpec or a BoundedSpec, "
                "or a DictActionSpec of some",
            )
        ]
    if not isinstance(size, int | np.integer) or size < 1:
        return [error("action", f"there are {size} {what}: at least one is needed")]
    if isinstance(spec, DiscreteSpec) and size == 1:
        return [warning("action", "there is a single action, so nothing can be decided or learned")]
    return [ok("action", f"there are {size} {what}")]


def count_errors(findings: list[Finding]) -> int:
    """How many of the findings are errors."""
    return sum(finding.severity == "error" for finding in findings)
