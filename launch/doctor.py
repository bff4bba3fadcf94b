"""Look for faults in an environment before training in it: a sentence for each finding.

    python -m launch.doctor --env=Breakout-MinAtar
    python -m launch.doctor --env=atari:Pong-v5
    python -m launch.doctor --env=path/to/file.py:make_environment
    python -m launch.doctor --experiment=drama_catch

`--env` is FAMILY:NAME (`gymnax`, `envpool`, `atari`, `gymnasium`, `dm_control`, `craftax`, `brax`,
`probe`: launch/README.md) or a bare name of gymnax or EnvPool; or FILE.py:FUNCTION or
dotted.module:FUNCTION, which gives an environment or a config of one. `--experiment` looks at the
environment of an experiment, `--set` changes its fields. The exit status is 1 if there are errors.
"""

import sys

from absl import flags

from launch import flags as launch_flags

_ENV = flags.DEFINE_string("env", None, "The environment; see above.")
_EXPERIMENT = flags.DEFINE_string("experiment", None, "As for launch.train.")
_SET = flags.DEFINE_multi_string("set", [], "path=value of the experiment; repeatable.")
_STEPS = flags.DEFINE_integer("steps", 2_000, "Rows of each lane that are played.")
_SEED = flags.DEFINE_integer("seed", 0, "Of actions and environment.")
_RANGE = flags.DEFINE_list("range", None, "LOW,HIGH: numbers that an observation may hold.")


def main() -> None:
    """Print the findings; exit with 1 if one is an error."""
    from mbrl_jax.experiment import config
    from mbrl_jax.train import runtime

    if (_ENV.value is None) == (_EXPERIMENT.value is None):
        raise config.ConfigError("give one of --env and --experiment; see --help")
    if _STEPS.value < 1:
        raise config.ConfigError(f"--steps={_STEPS.value} must be at least 1")
    limits = _limits()
    runtime.configure_runtime(quick_compile=True)
    runtime.require_devices()
    from mbrl_jax.envs import doctor
    from mbrl_jax.train.tables import print_findings

    found = doctor.check(_environment(), steps=_STEPS.value, seed=_SEED.value, limits=limits)
    print_findings(found, _ENV.value or launch_flags.required(_EXPERIMENT))
    sys.exit(1 if doctor.count_errors(found) else 0)


def _environment():
    if _EXPERIMENT.value is None:
        if _SET.value:
            from mbrl_jax.errors import ConfigError

            raise ConfigError("--set changes fields of an --experiment, and there is none")
        return launch_flags.load_environment(launch_flags.required(_ENV))
    from mbrl_jax.experiment import config

    return config.override(launch_flags.load_experiment(_EXPERIMENT.value), _SET.value).env


def _limits() -> tuple[float, float] | None:
    if _RANGE.value is None:
        return None
    from mbrl_jax.errors import ConfigError

    try:
        low, high = map(float, _RANGE.value)
    except ValueError as error:
        text = ",".join(_RANGE.value)
        raise ConfigError(f"--range={text} is no pair of numbers: write LOW,HIGH") from error
    return low, high


if __name__ == "__main__":
    launch_flags.run_main(main)
