"""List the settings in which an experiment can be as published, or better.

    python -m launch.switches --experiment=drama_atari100k

prints a table in Markdown; that of drama_atari100k stands in experiments/README.md.
"""

from absl import flags

from launch import flags as launch_flags

_EXPERIMENT = flags.DEFINE_string("experiment", "drama_atari100k", "Name of an experiment.")


def main() -> None:
    """Print the table."""
    from mbrl_jax.experiment import switches

    print(switches.table(launch_flags.load_experiment(_EXPERIMENT.value)), end="")


if __name__ == "__main__":
    launch_flags.run_main(main)
