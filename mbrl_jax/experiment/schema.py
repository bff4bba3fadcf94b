"""Reading configs that earlier versions wrote: what has moved, and what is said elsewhere now."""

from typing import Any

# "module:Class" of schema 1 -> of today.
MOVED = {
    "mbrl_jax.train.experiment:Experiment": "mbrl_jax.experiment.experiment:Experiment",
    "mbrl_jax.train.members:Members": "mbrl_jax.experiment.members:Members",
    "mbrl_jax.train.loop:Phase": "mbrl_jax.loops.phases:Phase",
}
# Paths of assignments that stand elsewhere now.
_RENAMED = {
    "model_buffer.": "agent.buffer.",
    "replay.context_length": "agent.context_length",
}
_NOT_ASKED = ("num_contexts", "num_transitions")  # the agent says now what it draws


def from_1(data: dict[str, Any]) -> dict[str, Any]:
    """A config as schema 1 has it, in the fields of schema 2.

    The agent's type decides how its parts learn, and a model buffer belongs to a branched agent.
    """
    if not data.get("type", "").endswith("train.experiment:Experiment"):
        return _moved(data)
    data = dict(data)
    agent, buffer = dict(data["agent"]), data.pop("model_buffer", None)
    replay = {k: v for k, v in data["replay"].items() if k not in _NOT_ASKED}
    agent["context_length"] = replay.pop("context_length", 1)
    length = agent.pop("branch_length", 0)
    if length:
        agent |= {"type": "mbrl_jax.agents.branched:Config", "branch_length": length}
        agent["buffer"] = buffer
        agent.pop("starts", None)
    else:
        agent["type"] = "mbrl_jax.agents.apart:Config"
    debug = [_renamed(assignment) for assignment in data.get("debug", ())]
    return _moved(data | {"agent": agent, "replay": replay, "debug": debug})


def _renamed(assignment: str) -> str:
    """An assignment "path=value" with the path of today."""
    for old, new in _RENAMED.items():
        if assignment.startswith(old):
            return new + assignment.removeprefix(old)
    return assignment


def _moved(value: Any) -> Any:
    """The same, with every type where it is today."""
    if isinstance(value, list):
        return [_moved(child) for child in value]
    if not isinstance(value, dict):
        return value
    found = {key: _moved(child) for key, child in value.items()}
    if "type" in found:
        found["type"] = MOVED.get(found["type"], found["type"])
    return found
