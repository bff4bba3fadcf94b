"""How many seeds of a sweep fit into one program: asked in processes that may use the devices."""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from mbrl_jax.errors import ConfigError
from mbrl_jax.sweeps import plan

# Of the memory that preflight finds; allocators leave gaps.
SHARE = 0.9


def seeds_that_fit(
    common: plan.Common,
    configurations: Iterable[tuple[str, ...]],
    prefix: Sequence[str] = (),
    programs: int = 1,
) -> int:
    """Most seeds that one program can take of every configuration, `common.num_seeds` at most.

    Args:
      common: what the members share.
      configurations: settings of each.
      prefix: of the command, where it is to run elsewhere.
      programs: that share the memory.

    Raises ConfigError where not one seed fits, or a preflight fails.
    """
    if common.num_seeds == 1:
        return 1
    return min(_fit(common, settings, prefix, programs) for settings in configurations)


def _fit(common, settings, prefix, programs) -> int:
    asked = 2  # a single seed would be another kind of program
    member = plan.Member(plan.member_name(settings), settings, 0, asked, 0, 0)
    command = plan.train_command(sys.executable, common, member, Path("unused"))
    command = [*prefix, *command, "--preflight", "--json", "--allow_oversize"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ConfigError(
            f"--seeds_per_program=fit: the preflight of {member.name} failed ({said}); give a "
            f"number, or see what {shlex.join(command)} says"
        )
    found = json.loads(done.stdout.splitlines()[-1])
    if found["most_seeds"] is None:
        raise ConfigError(
            "--seeds_per_program=fit: nobody tells how much memory is free; give a number"
        )
    settings_inside = found["num_seeds"] // asked
    fit = int(SHARE * found["most_seeds"]) // programs // settings_inside
    if not fit:
        raise ConfigError(
            f"--seeds_per_program=fit: not one seed of {member.name} fits into the memory"
        )
    return min(fit, common.num_seeds)
