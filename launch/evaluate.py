"""Evaluate the newest checkpoint of a run: complete episodes, greedy by default.

python -m launch.evaluate --workdir=runs/catch --num_episodes=100
"""

from absl import flags

from launch import flags as launch_flags

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.")
_NUM_EPISODES = flags.DEFINE_integer("num_episodes", 100, "Complete episodes of each seed.")
_EXPLORE = flags.DEFINE_bool("explore", False, "Sample actions instead of taking the best.")


def main() -> None:
    """Evaluate all seeds and print a row for each."""
    from mbrl_jax.train import config, runtime

    if not _WORKDIR.value:
        raise config.ConfigError("--workdir is missing; see --help")
    if _NUM_EPISODES.value < 1:
        raise config.ConfigError(f"--num_episodes={_NUM_EPISODES.value} must be at least 1")
    runtime.configure_runtime()
    runtime.require_devices()
    from mbrl_jax.train.progress import print_evaluation
    from mbrl_jax.train.run import evaluate_run

    evaluation = evaluate_run(_WORKDIR.value, _NUM_EPISODES.value, explore=_EXPLORE.value)
    print_evaluation(evaluation, _WORKDIR.value)


if __name__ == "__main__":
    launch_flags.run_main(main)
