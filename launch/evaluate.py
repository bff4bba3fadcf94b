"""Evaluate a checkpoint of a run, the newest by default: complete episodes, greedy ones.

    python -m launch.evaluate --workdir=runs/catch --num_episodes=100
    python -m launch.evaluate --workdir=runs/catch --checkpoint=best
    python -m launch.evaluate --workdir=runs/pong --protocol=published --gif=pong.gif
    python -m launch.evaluate --workdir=runs/catch --quality --random_share=0.1
    python -m launch.evaluate --workdir=runs/planner --set=behaviour.plan=false

`--protocol` says which episodes count. clean: every lane plays a number that is fixed before.
published: the first to end in any of 32 lanes, as in Drama's own evaluation; short episodes are
favoured, so that its mean is biased and good only for comparison with published scores.

`--gif` films a greedy episode: the images that the agent sees, side by side if there are several;
where it sees vectors, what the environment renders (`dm_control:`, `gymnasium:`).

`--quality` measures the world model instead: its open-loop error against the horizon, rewards,
ends of episodes, calibration of the discount and reconstruction (mbrl_jax/evaluate/quality.py).
It is measured on the rows of the policy's own actions, sampled as in training; `--random_share` of
them at random show it beside that path, where a policy that improves will go.

`--set=path=value` (repeatable) judges the run under another setting than it was trained with, where
the trained state keeps its shapes: a planner's policy alone, or another variant of the environment.
"""

from absl import flags

from launch import flags as launch_flags

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.")
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "newest", "newest, best (in training return), or an iteration."
)
_NUM_EPISODES = flags.DEFINE_integer("num_episodes", 100, "Complete episodes of each seed.")
_PROTOCOL = flags.DEFINE_enum(
    "protocol", "clean", ["clean", "published"], "Which episodes count; see above."
)
_GIF = flags.DEFINE_string(
    "gif", None, "Write a greedy episode there, of several seeds as NAME_0.gif, NAME_1.gif, …"
)
_EXPERIMENT = launch_flags.define_types()
_QUALITY = flags.DEFINE_bool(
    "quality", False, "Measure the world model instead, and write quality.json into the workdir."
)
_HORIZON = flags.DEFINE_integer("horizon", 15, "Rows ahead that --quality predicts.")
_RANDOM_SHARE = flags.DEFINE_float(
    "random_share", 0.0, "Share of random actions in the rows that --quality predicts.", 0.0, 1.0
)
_SET = flags.DEFINE_multi_string("set", [], "path=value, for this evaluation alone; repeatable.")
_EXPLORE = flags.DEFINE_bool("explore", False, "Sample actions instead of taking the best.")

_OF_EPISODES = ("num_episodes", "protocol", "gif", "explore", "set")
_OF_QUALITY = ("horizon", "random_share")


def main() -> None:
    """Evaluate all seeds and print a row for each."""
    from mbrl_jax.experiment import config
    from mbrl_jax.train import runtime

    directory = launch_flags.required(_WORKDIR)
    for name in _OF_EPISODES if _QUALITY.value else _OF_QUALITY:
        if flags.FLAGS[name].present:
            goes = "does not go with --quality" if _QUALITY.value else "goes with --quality only"
            raise config.ConfigError(f"--{name} {goes}")
    if _NUM_EPISODES.value < 1:
        raise config.ConfigError(f"--num_episodes={_NUM_EPISODES.value} must be at least 1")
    runtime.configure_runtime()
    runtime.require_devices()
    from mbrl_jax.train.tables import print_evaluation, print_films
    from mbrl_jax.train.trained import evaluate_seeds, film_seeds, restore_run

    launch_flags.load_types(_EXPERIMENT.value)
    if _QUALITY.value:
        return _measure(directory)
    run = restore_run(directory, _CHECKPOINT.value, _SET.value)
    if _GIF.value is not None:
        print_films(film_seeds(*run, _GIF.value))
    evaluation = evaluate_seeds(*run, _NUM_EPISODES.value, _EXPLORE.value, _PROTOCOL.value)
    judged = " ".join((directory, *_SET.value))
    print_evaluation(evaluation, run[0], judged, _PROTOCOL.value)


def _measure(directory: str) -> None:
    """Measure the world model, print a table, write `quality.json`."""
    from mbrl_jax.errors import ConfigError
    from mbrl_jax.evaluate import quality
    from mbrl_jax.runs import workdir
    from mbrl_jax.train import trained
    from mbrl_jax.train.report import write_quality
    from mbrl_jax.train.tables import print_quality

    measured = quality.Config(horizon=_HORIZON.value, random_share=_RANDOM_SHARE.value)
    found = trained.measure_quality(directory, _CHECKPOINT.value, measured)
    print_quality(found, directory)
    try:
        write_quality(workdir.as_path(directory), found)
    except OSError as error:
        raise ConfigError(
            f"quality.json could not be written ({error.strerror}); make room in {directory}, "
            "or the permission to write there"
        ) from error


if __name__ == "__main__":
    launch_flags.run_main(main)
