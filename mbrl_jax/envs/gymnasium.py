"""Environments with Gymnasium's interface (gymnasium.farama.org), in our time convention.

`gymnasium:CartPole-v1` is a registered id, `gymnasium:PACKAGE:ID` one that a package registers when
it is imported, and `gymnasium:MODULE:FUNCTION` a function that gives an environment. Each lane is
stepped in a process of its own: a script that opens some keeps its main part under
`if __name__ == "__main__":`.
"""

import dataclasses
import functools
import importlib
import json
import sys
import warnings
from collections.abc import Callable
from typing import Any

from mbrl_jax.envs.names import library
from mbrl_jax.envs.processes import spaces, vector, worker
from mbrl_jax.errors import ConfigError
from mbrl_jax.types import EnvSpec, HostEnvironments, bounded


@dataclasses.dataclass(frozen=True)
class Config:
    """One environment: "CartPole-v1", "minigrid:MiniGrid-Empty-5x5-v0", "my_module:make_env"."""

    name: str
    # Parts of an observation of several ("image", "agent.position"): one stands alone, several are
    # one float32 vector in this order; () keeps all, as a dictionary.
    leaves: tuple[str, ...] = ()
    max_steps: int | None = bounded(None, low=1)  # time limit; None keeps the environment's own
    options: tuple[str, ...] = ()  # that it is made with, as in "is_slippery=false"
    processes: bool = True  # one for each core; without them cheap environments are faster

    @property
    def imports(self) -> tuple[str, ...]:
        """Modules that have to be imported before `make`."""
        module, colon, _ = self.name.partition(":")
        return (module,) if colon else ()

    @property
    def comes_from(self) -> tuple[str, ...]:
        """Modules that decide what the environment does, beside ours."""
        registry = getattr(sys.modules.get("gymnasium"), "registry", {})
        entry = getattr(registry.get(self.name.rpartition(":")[2]), "entry_point", None)
        made = str(getattr(entry, "__module__", entry)).partition(":")[0] if entry else ""
        return ("gymnasium", *self.imports, *([made] if made else []))

    def make(self) -> HostEnvironments:
        """Describe the environment.

        Raises ValueError for a name that nobody registered, a module that is not imported, and
        spaces that have no counterpart here.
        """
        return make(self)


def named(name: str) -> Config:
    """The config of a name that somebody wrote down: its module, if it has one, is imported.

    What is read from a file imports nothing. Raises ConfigError for a module that cannot be
    imported.
    """
    module, colon, _ = name.partition(":")
    if colon:
        try:
            importlib.import_module(module)
        except Exception as error:  # a file of one's own can raise whatever it likes
            raise ConfigError(f"gymnasium:{name}: cannot import {module!r} ({error})") from error
    return Config(name)


@functools.cache
def make(config: Config) -> HostEnvironments:
    """Describe an environment, and say how its lanes are opened."""
    open_one = opener(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Gymnasium's, on the precision of spaces
        env = _told(config, open_one)
    seen, taken = env.observation_space, env.action_space
    env.close()
    observation, observe = spaces.observation_adaptor(seen, config.leaves, who=config.name)
    action, to_env = spaces.action_adaptor(taken, config.name)
    spec = EnvSpec(observation, action)

    def open_lanes(one, lane_seeds, *, evaluation):
        del evaluation
        makes = [one] * lane_seeds.size
        return vector.open_lanes(
            makes, spec, observe, to_env, lane_seeds, processes=config.processes
        )

    opened = functools.partial(functools.partial, open_lanes)
    return HostEnvironments(spec, opened(open_one), _rendered(env, open_one, opened))


def _rendered(env: Any, open_one: Any, opened: Callable[[Any], Any]) -> Any:
    """How lanes are opened that show pictures; None where they cannot be asked for."""
    gymnasium = library("gymnasium", "install gymnasium 1.1 or newer")
    modes = (env.metadata or {}).get("render_modes", ())
    # A function of one's own may know no `render_mode`.
    if getattr(open_one, "func", None) is not gymnasium.make or "rgb_array" not in modes:
        return None
    return opened(functools.partial(open_one, render_mode="rgb_array"))


def opener(config: Config) -> Callable[[], Any]:
    """The function that opens one environment, here or in another process."""
    gymnasium = library("gymnasium", "install gymnasium 1.1 or newer")
    options = _read_options(config)
    module, colon, function = config.name.partition(":")
    if colon and module not in sys.modules:
        raise ValueError(
            f"gymnasium:{config.name}: the module {module!r} is not imported, and what is read "
            f"from a file imports nothing: import it, or say --experiment={module}"
        )
    if colon and callable(made := getattr(sys.modules[module], function, None)):
        open_one = functools.partial(made, **options)
        if config.max_steps is None:
            return open_one
        return functools.partial(worker.limited, open_one, config.max_steps)
    # The description and not the name: another process may not know who registered it.
    described = _told(config, lambda: gymnasium.spec(config.name))
    limits = {} if config.max_steps is None else {"max_episode_steps": config.max_steps}
    made = functools.partial(gymnasium.make, described, disable_env_checker=True)
    return functools.partial(made, **limits, **options)


def _told(config: Config, call: Callable[[], Any]) -> Any:
    """`call()`. Raises ValueError with Gymnasium's own words, and what to do."""
    gymnasium = library("gymnasium", "install gymnasium 1.1 or newer")
    try:
        return call()
    except gymnasium.error.UnregisteredEnv as error:
        remedy = "where a package registers it, write gymnasium:PACKAGE:ID"
        raise ValueError(f"there is no gymnasium:{config.name} ({error}): {remedy}") from error
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        lacks = isinstance(error, ImportError | gymnasium.error.DependencyNotInstalled)
        remedy = "install that, often as gymnasium[mujoco] or [box2d]" if lacks else "mend its name"
        remedy = remedy if lacks or not config.options else "look at env.options"
        raise ValueError(f"gymnasium:{config.name} cannot be made ({error}): {remedy}") from error


def _read_options(config: Config) -> dict[str, Any]:
    """Values written as in JSON; any other text is a word."""
    found = {}
    for assignment in config.options:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"env.options: {assignment!r} is not of the form name=value")
        try:
            found[name] = json.loads(text.lower() if text in ("True", "False") else text)
        except ValueError:
            found[name] = text
    return found
