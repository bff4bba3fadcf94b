"""The environment doctor: `doctor.check(env)` plays one and says what is wrong with it."""

from mbrl_jax.envs.doctor.examine import STEPS, check, check_spec, count_errors
from mbrl_jax.envs.doctor.rows import Finding

__all__ = ["Finding", "STEPS", "check", "check_spec", "count_errors"]
