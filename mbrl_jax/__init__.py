"""mbrl_jax: model-based reinforcement learning from pure functions, vmapped over seeds.

Names are loaded when they are first used, so that importing the package costs nothing:

    Experiment, run, load_policy                    run things from Python
    evaluate_run, film_run, read_metrics            look at what was run
    read_runs, export_policy                        take it away: a pandas table, a policy file
    restore_policy, imagined_environment            a trained agent; the world that its model dreams
    load_published, load_published_agent            weights of the PyTorch Drama
    mbrl_jax.ssm, .cores, .world_models, …          the parts
"""

import importlib

__version__ = "0.1.0"

_NAMES = {
    "Experiment": "mbrl_jax.experiment.experiment",
    "Due": "mbrl_jax.loops.phases",
    "Phase": "mbrl_jax.loops.phases",
    "build": "mbrl_jax.experiment.experiment",
    "evaluate_run": "mbrl_jax.train.trained",
    "film_run": "mbrl_jax.train.trained",
    "imagined_environment": "mbrl_jax.envs.imagined",
    "load_policy": "mbrl_jax.train.trained",
    "load_published": "mbrl_jax.world_models.drama.published_files",
    "load_published_agent": "mbrl_jax.world_models.drama.published_files",
    "over_seeds": "mbrl_jax.loops.seeds",
    "export_policy": "mbrl_jax.export.archive",
    "read_metrics": "mbrl_jax.runs.metrics",
    "read_runs": "mbrl_jax.report.frame",
    "restore_policy": "mbrl_jax.train.trained",
    "restore_run": "mbrl_jax.train.trained",
    "run": "mbrl_jax.train.run",
    "seed_keys": "mbrl_jax.loops.seeds",
}
_CALLED = {"read_runs": "frame_of_runs"}  # in their modules
_MODULES = (
    *("agents", "behaviours", "cores", "distributions", "envs", "evaluate", "imagination"),
    *("networks", "optim", "replay", "returns", "ssm", "testing", "train", "types"),
    "world_models",
)

__all__ = sorted([*_NAMES, *_MODULES, "__version__"])


def __getattr__(name: str):
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), _CALLED.get(name, name))
    if name in _MODULES:
        return importlib.import_module(f"mbrl_jax.{name}")
    raise AttributeError(f"module 'mbrl_jax' has no attribute {name!r}")


def __dir__():
    return __all__
