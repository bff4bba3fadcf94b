"""Before a run: how large a seed is, how many fit, and how long it will take.

`plan` looks at shapes alone and costs a fraction of a second; a run that cannot fit is refused by
it. `measure` compiles and times updates as well: `python -m launch.train --preflight`.
"""

from typing import Any, NamedTuple

import jax

from mbrl_jax.envs.spec import example_observation, first_timestep
from mbrl_jax.errors import ConfigError
from mbrl_jax.experiment.experiment import Experiment, System, title_of
from mbrl_jax.loops.phases import Phase
from mbrl_jax.loops.seeds import seed_mesh
from mbrl_jax.loops.steps import TrainState
from mbrl_jax.train import memory
from mbrl_jax.types import Agent, HostEnvironments, PyTree

_SECONDS = 2.0  # that updates are timed for
_MOST_UPDATES = 100
_AMPLE = 10  # times what an update takes: where more is free, evaluations fit without a look
_ROWS = 50  # that are collected for the clock where nothing is learned


class Plan(NamedTuple):
    """The size of a run. Bytes are those of one seed."""

    experiment: Experiment
    num_seeds: int
    parameters: dict[str, int]  # numbers that are trained, by learner
    replay: int  # bytes of the stored rows
    state: int  # bytes of everything that is kept, the replay included
    memory: memory.Memory
    allow_oversize: bool = False  # begin even where it does not fit
    temporaries: int | None = None  # bytes that the program of an update takes; None: not compiled
    hours: float | None = None  # of all updates, timed
    evaluation: int | None = None  # bytes that what follows the last step takes; None: not compiled

    @property
    def of_seed(self) -> int:
        """Bytes that a seed takes, as far as they are known."""
        return self.state + max(self.temporaries or 0, self.evaluation or 0)

    def more(self) -> str:
        """What comes on top of the state of a seed, in words."""
        if self.temporaries is None:
            return "without what an update takes for itself"
        evaluating = f", {size(self.evaluation)} in the evaluation" if self.evaluation else ""
        return f"and {size(self.temporaries)} more during an update{evaluating}"

    @property
    def most_seeds(self) -> int | None:
        """Seeds that fit, None where it is not known how much memory is free."""
        return self.memory.seeds_that_fit(self.of_seed)

    def numbers(self) -> dict[str, Any]:
        """What is known, for programs: bytes are those of one seed, `free` that of one pool."""
        sizes = ("replay", "state", "temporaries", "evaluation")
        kept = ("num_seeds", "parameters", *sizes, "most_seeds", "hours")
        found = {name: getattr(self, name) for name in kept}
        return found | {"free": self.memory.free, "pools": self.memory.pools}

    def refusal(self) -> str | None:
        """Why the run cannot fit and what helps, or None where it can."""
        place, seeds = self.memory, self.memory.seeds_of_pool(self.num_seeds)
        if place.free is None or seeds * self.of_seed <= place.free:
            return None
        remedies = [f"--num_seeds={self.most_seeds}"] if self.most_seeds else []
        if (self.evaluation or 0) > (self.temporaries or 0):
            remedies.append("fewer episodes at once (--set=eval_episodes=…)")
        if capacity := self._capacity_that_fits(seeds):
            remedies.append(f"--set=replay.capacity={capacity}")
        remedies.append("--allow_oversize to try all the same")
        return (
            f"{seeds} seeds of {title_of(self.experiment)} need {size(seeds * self.of_seed)} "
            f"({size(self.of_seed)} each, of which {size(self.replay)} are replay), and "
            f"{size(place.free)} of {place.place} are free, enough for {self.most_seeds}: use "
            f"{', or '.join(remedies)}"
        )

    def _capacity_that_fits(self, seeds: int) -> int | None:
        """Rows of a lane in the replay so that all seeds fit, to two digits."""
        config = self.experiment.replay
        if not hasattr(config, "capacity"):  # of a fixed data set: nothing to make smaller
            return None
        assert self.memory.free is not None  # else nothing is known to be too much
        room = self.memory.free // seeds - (self.of_seed - self.replay)
        rows = int(config.capacity * room / self.replay)
        digits = 10 ** max(len(str(rows)) - 2, 0)
        rows = rows // digits * digits
        return rows if rows >= self.experiment.least_rows else None


def size(count: float) -> str:
    """Bytes in words."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} bytes"


def plan(
    experiment: Experiment, system: System, num_seeds: int, allow_oversize: bool = False
) -> Plan:
    """The plan of a run, from shapes alone."""
    state = state_of_seed(experiment, system)
    sizes = (parameters(system.agent), _bytes(state.replay.storage), _bytes(state))
    return Plan(experiment, num_seeds, *sizes, memory.find_memory(), allow_oversize)


def state_of_seed(experiment: Experiment, system: System) -> TrainState:
    """Shapes and dtypes of the state of one seed."""
    key = jax.random.key(0)
    if not isinstance(system.env, HostEnvironments):
        return jax.eval_shape(system.entry.init, key)
    lane = first_timestep(example_observation(system.env.spec.observation))
    shape = (experiment.num_envs,)
    lanes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(shape + x.shape, x.dtype), lane)
    return jax.eval_shape(system.entry.init, key, lanes)


def parameters(agent: Agent) -> dict[str, int]:
    """Numbers that are trained, by learner."""
    state = jax.eval_shape(agent.init, jax.random.key(0))
    learners = {"world model": state.world_model, "behaviour": state.behaviour}
    return {
        name: sum(leaf.size for leaf in jax.tree.leaves(learner.params))
        for name, learner in learners.items()
    }


def _bytes(tree: PyTree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def require_fit(plan: Plan) -> None:
    """Raise ConfigError where the run cannot fit, unless that is allowed."""
    if not plan.allow_oversize and (sentence := plan.refusal()):
        raise ConfigError(sentence)


def _of_seed(programs: Any, on_device: int) -> int:
    """Bytes of one seed, of so many that all of them take on a device."""
    return on_device // -(-programs.num_seeds // seed_mesh(programs.num_seeds).size)


def require_room(plan: Plan, programs: Any) -> None:
    """The same once the state lies in memory: is there room for what an update takes beside it?

    Waits until the program is compiled. Raises ConfigError where there is not.
    """
    if plan.allow_oversize:
        return
    temporaries = _of_seed(programs, programs.temporaries())
    place, seeds = memory.find_memory(), plan.memory.seeds_of_pool(plan.num_seeds)
    if place.free is None:
        return
    if seeds * temporaries <= place.free:
        if seeds * temporaries * _AMPLE > place.free:  # else training need not wait for it
            _require_room_to_evaluate(plan, programs, place.free)
        return
    fit = plan._replace(temporaries=temporaries).most_seeds
    remedy = f"--num_seeds={fit}" if fit else "a smaller replay.batch_size or agent.num_starts"
    raise ConfigError(
        f"an update of {seeds} seeds of {title_of(plan.experiment)} takes "
        f"{size(seeds * temporaries)} beside their state, and {size(place.free)} of "
        f"{place.place} are left: use {remedy} in another --workdir, or --allow_oversize to try "
        "all the same"
    )


def _require_room_to_evaluate(plan: Plan, programs: Any, free: int) -> None:
    """The same of what follows the last step; the state is still there then."""
    evaluation = _of_seed(programs, programs.evaluation_temporaries())
    seeds = plan.memory.seeds_of_pool(plan.num_seeds)
    if seeds * evaluation > free:
        raise ConfigError(
            f"the evaluation of {seeds} seeds of {plan.experiment.name} after the last step takes "
            f"{size(seeds * evaluation)} beside their state, and {size(free)} of "
            f"{plan.memory.place} are left: use fewer episodes (--set=eval_episodes=…) or seeds in "
            "another --workdir, or --allow_oversize to try all the same"
        )


# -------------------------------------------------------------------------------------------- time


def updates(experiment: Experiment, begin: int = 0) -> int:
    """Updates of a seed from an iteration to the end: at multiples of what is due."""
    return sum(
        due.times * (-(-stop // due.every) - -(-max(start, begin) // due.every))
        for phase, start, stop in _stretches(experiment)
        for due in phase.dues
        if phase.learn and stop > begin
    )


def measure(programs: Any, keys: jax.Array, found: Plan) -> Plan:
    """Compile, and time updates on the devices: the plan with all that it can say.

    Args:
      programs: of the experiment for all seeds; they are not closed here.
      keys: of the seeds.
      found: what `plan` gave; when not even that fits, nothing is done.
    """
    if found.refusal():
        return found
    programs.compile_ahead(keys, fresh=True)
    found = found._replace(
        temporaries=_of_seed(programs, programs.temporaries()),
        evaluation=_of_seed(programs, programs.evaluation_temporaries()),
    )
    if found.refusal():
        return found
    return found._replace(hours=_timed(found.experiment, programs, keys) / 3600)


def _timed(experiment: Experiment, programs: Any, keys: jax.Array) -> float:
    """Seconds of all phases, from a few iterations of each."""
    done = experiment.least_rows + 1
    state, _, _ = programs.chunk(Phase(done, learn=False), programs.init(keys), 0, done)
    total, known = 0.0, {}
    for phase, start, stop in _stretches(experiment):
        kind = (phase.collect, phase.learn and phase.dues)
        if kind not in known:
            unit = max(due.every for due in phase.dues) if phase.learn else _ROWS
            state, _, seconds = programs.chunk(phase, state, done, done + unit)  # the first is slow
            more = unit * int(min(max(_SECONDS / seconds, 1), _MOST_UPDATES))
            state, _, seconds = programs.chunk(phase, state, done + unit, done + unit + more)
            known[kind], done = seconds / more, done + unit + more
        total += known[kind] * (stop - start)
    return total


def _stretches(experiment: Experiment) -> list[tuple[Phase, int, int]]:
    """(phase, its first iteration, the one after its last) of each that is run."""
    found, start = [], 0
    for phase in experiment.phases:
        stop = min(start + phase.iterations, experiment.iterations)
        if stop > start:
            found.append((phase, start, stop))
        start = stop
    return found
