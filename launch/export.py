"""Write the policy of one seed of a run to one file that needs jax and numpy alone.

    python -m launch.export --workdir=runs/catch --out=catch.policy.zip
    python -m launch.export --workdir=runs/catch --seed_index=2 --checkpoint=best --out=best.zip

The file holds the program (StableHLO), the parameters that it reads, specs, a loader and a README
with the call. It runs on the platforms of `--platforms`, by default the one that this runs on.
"""

from absl import flags

from launch import flags as launch_flags

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.")
_OUT = flags.DEFINE_string("out", None, "The file to write.")
_SEED_INDEX = flags.DEFINE_integer("seed_index", 0, "Which of the run's members.", lower_bound=0)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "newest", "newest, best (in training return), or an iteration."
)
_EXPLORE = flags.DEFINE_bool("explore", False, "Sample actions instead of taking the best.")
_PLATFORMS = flags.DEFINE_list("platforms", [], "cpu, cuda, rocm, tpu; default: where this runs.")
_EXPERIMENT = launch_flags.define_types()


def main() -> None:
    """Export one policy."""
    from mbrl_jax.train import runtime

    workdir, out = launch_flags.required(_WORKDIR), launch_flags.required(_OUT)
    runtime.configure_runtime()
    runtime.require_devices()
    from mbrl_jax.export.archive import export_policy

    launch_flags.load_types(_EXPERIMENT.value)
    platforms = _PLATFORMS.value or None
    exported = export_policy(
        *(workdir, out, _SEED_INDEX.value, _CHECKPOINT.value),
        explore=_EXPLORE.value,
        platforms=platforms,
    )
    print(f"{exported.path}: {exported.size / 2**20:.1f} MB, of step {exported.step}")
    print(f"how to use it: unzip -p {exported.path} README.md")


if __name__ == "__main__":
    launch_flags.run_main(main)
