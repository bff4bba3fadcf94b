"""Show what a checkpoint's world model predicts without observations: `open_loop.png` at any time.

    python -m launch.open_loop --workdir=runs/catch --out=catch.png
    python -m launch.open_loop --workdir=runs/catch --out=best.png --checkpoint=best
    python -m launch.open_loop --workdir=runs/catch --gif=catch.gif --episodes=3

`--gif` is an animation: real episodes at the left, at the right what the model imagines of them
with the actions that were really taken, after `--context` rows that it sees. A bar below says where
imagination begins. Of observations in several parts all images are shown; vectors are curves.

The run may be training meanwhile: nothing is written to its directory.
"""

from pathlib import Path

from absl import flags

from launch import flags as launch_flags

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.")
_OUT = flags.DEFINE_string("out", None, "The PNG to write.")
_GIF = flags.DEFINE_string("gif", None, "The animation to write: real beside imagined.")
_EPISODES = flags.DEFINE_integer("episodes", 3, "Of --gif, one after the other.", 1)
_CONTEXT = flags.DEFINE_integer(
    "context", None, "Rows of --gif that the model sees; by default the experiment's.", 1
)
_ROWS = flags.DEFINE_integer("rows", 40, "Rows of an episode in --gif, at most.", 2)
_MILLISECONDS = flags.DEFINE_integer("milliseconds", 250, "That a row of --gif lasts.", 20)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "newest", "newest, best (in training return), or an iteration."
)
_EXPERIMENT = launch_flags.define_types()


def main() -> None:
    """Restore, predict, draw."""
    from mbrl_jax.experiment import config
    from mbrl_jax.train import runtime

    workdir = launch_flags.required(_WORKDIR)
    if _OUT.value is None and _GIF.value is None:
        raise config.ConfigError("--out is missing: name the PNG, or an animation with --gif")
    for flag, suffix, other in ((_OUT, ".png", "gif"), (_GIF, ".gif", "out")):
        if flag.value is None:
            continue
        path = Path(flag.value)
        if path.suffix.lower() != suffix or not path.parent.is_dir():
            raise config.ConfigError(
                f"--{flag.name}={path} must end in {suffix} and lie in an existing directory; "
                f"--{other} writes the other kind"
            )
    _require_animation()
    runtime.configure_runtime(quick_compile=True)
    runtime.require_devices()
    from mbrl_jax.train import trained

    launch_flags.load_types(_EXPERIMENT.value)
    if _OUT.value is not None:
        step = trained.draw_open_loop(workdir, _OUT.value, _CHECKPOINT.value)
        print(f"step {step}: {_OUT.value}")
    if _GIF.value is not None:
        told = trained.Imagined(_EPISODES.value, _CONTEXT.value, _ROWS.value, _MILLISECONDS.value)
        step = trained.animate_open_loop(workdir, _GIF.value, _CHECKPOINT.value, told)
        print(f"step {step}: {_GIF.value}")


def _require_animation() -> None:
    """Raise ConfigError for flags that say nothing, because there is no --gif."""
    from mbrl_jax.errors import ConfigError

    for flag in (_EPISODES, _CONTEXT, _ROWS, _MILLISECONDS):
        if _GIF.value is None and flags.FLAGS[flag.name].present:
            raise ConfigError(f"--{flag.name} is of the animation: give --gif=NAME.gif too")


if __name__ == "__main__":
    launch_flags.run_main(main)
