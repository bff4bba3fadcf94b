"""List the settings in which an experiment can be as published, or better.

    python -m launch.switches --experiment=drama_atari100k

prints tables in Markdown: the switches, those that are published otherwise with another part, and
the differences that stay. Those of drama_atari100k stand in experiments/README.md. With
`--set=model.core=storm` they are those of the experiment with that part.
"""

from absl import flags

from launch import flags as launch_flags

_EXPERIMENT = flags.DEFINE_string("experiment", "drama_atari100k", "Name of an experiment.")
_SET = flags.DEFINE_multi_string("set", [], "path=value: another setting of the experiment.")


def main() -> None:
    """Print the tables."""
    from mbrl_jax.experiment import switches

    module = launch_flags.load_module(_EXPERIMENT.value)
    experiment = module.get_experiment()
    experiment = launch_flags.adjust_experiment(experiment, _SET.value, None, False)
    tables = (
        switches.table(experiment),
        switches.table_with_parts(experiment),
        switches.table_of_differences(getattr(module, "DIFFERENCES", ())),
    )
    print("\n".join(filter(None, tables)), end="")


if __name__ == "__main__":
    launch_flags.run_main(main)
