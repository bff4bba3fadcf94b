"""Draw what a checkpoint's world model predicts without observations: `open_loop.png` at any time.

    python -m launch.open_loop --workdir=runs/catch --out=catch.png
    python -m launch.open_loop --workdir=runs/catch --out=best.png --checkpoint=best

The run may be training meanwhile: nothing is written to its directory.
"""

from pathlib import Path

from absl import flags

from launch import flags as launch_flags

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.")
_OUT = flags.DEFINE_string("out", None, "The PNG to write.")
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "newest", "newest, best (in training return), or an iteration."
)
_EXPERIMENT = launch_flags.define_types()


def main() -> None:
    """Restore, predict, draw."""
    from mbrl_jax.experiment import config
    from mbrl_jax.train import runtime

    workdir, out = launch_flags.required(_WORKDIR), Path(launch_flags.required(_OUT))
    if out.suffix.lower() != ".png" or not out.parent.is_dir():
        raise config.ConfigError(f"--out={out} must end in .png and lie in an existing directory")
    runtime.configure_runtime(quick_compile=True)
    runtime.require_devices()
    from mbrl_jax.train.trained import draw_open_loop

    launch_flags.load_types(_EXPERIMENT.value)
    step = draw_open_loop(workdir, out, _CHECKPOINT.value)
    print(f"step {step}: {out}")


if __name__ == "__main__":
    launch_flags.run_main(main)
