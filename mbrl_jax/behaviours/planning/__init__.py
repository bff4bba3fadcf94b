"""`behaviour=planning`, and the planners that it and others choose from: a module each.

`plans` holds the record of a planner and what they share.
"""

from mbrl_jax.behaviours.planning.acting import Planning as Config

__all__ = ["Config"]
