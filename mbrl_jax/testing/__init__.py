"""The laws that every part keeps, for our tests and for third parties.

    from mbrl_jax import testing
    testing.check_core(my_core.Config(width=32))

Each function raises AssertionError, naming the law. L1 unroll ≡ scan(step); L2 carry_at; L3 resets
hide the past; L4 latent_at ≡ scan(observe); L5 imagine keeps structure; L6 updates keep structure;
L9 the entries of a loss let gradients through, and a decoder varies with the latent; L10 a named
update changes its own part, and a replaced loss what is learned; L11 a behaviour acts, learns, and
reads what it says it reads; L12 a replay gives consecutive rows, settles what is pending and leaves
data sets alone. (L7, seeds, and L8, resuming, are kept by the loops: see their tests.)

`rows` makes data up for any environment; `toys` holds the world model that behaviours are checked
in where none is given.
"""

from mbrl_jax.testing.agents import check_agent
from mbrl_jax.testing.asserts import assert_close, assert_equal, assert_same_structure
from mbrl_jax.testing.behaviours import check_behaviour
from mbrl_jax.testing.cores import check_core
from mbrl_jax.testing.models import check_world_model
from mbrl_jax.testing.replays import check_replay, check_sampler
from mbrl_jax.testing.rows import random_trajectory, random_transitions, random_windows

__all__ = [
    "assert_close",
    "assert_equal",
    "assert_same_structure",
    "check_agent",
    "check_behaviour",
    "check_core",
    "check_replay",
    "check_sampler",
    "check_world_model",
    "random_trajectory",
    "random_transitions",
    "random_windows",
]
