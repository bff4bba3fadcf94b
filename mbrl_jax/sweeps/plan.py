"""Sweeps as values: members of a grid or a file, their names, commands and the manifest.

A *member* is one process of `launch.train` with a workdir of its own: one configuration, and all
seeds of it that go into one program. Everything here but what reads and writes the manifest is
pure; `mbrl_jax/sweeps/supervise.py` runs what is planned, `sweeps/status.py` says how far it is.
"""

import hashlib
import itertools
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mbrl_jax.errors import ConfigError
from mbrl_jax.runs import files

MANIFEST = "sweep.json"
SCHEMA_VERSION = 1  # of the manifest
ALONE = "default"  # name of the one configuration of a sweep without grid and file
_LONGEST = 120  # characters of a name: file systems take 255 bytes
_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+")
_OPENING, _CLOSING = "([", ")]"


class Common(NamedTuple):
    """What all members share; a root directory holds one sweep, so it may not change there."""

    experiment: str  # as `launch.train --experiment` takes it
    settings: tuple[str, ...] = ()  # path=value
    seed: int = 0
    num_seeds: int = 1  # of each configuration, over all its programs
    seeds_per_program: int | None = None  # None: all of them
    inside: tuple[str, ...] = ()  # path=value,value: numbers that vary within a program
    debug: bool = False
    steps: int | None = None  # of each seed; None: the experiment's. It alone may grow


class Member(NamedTuple):
    """One process: a configuration, and those of its seeds that one program trains."""

    name: str  # of its workdir, below the root
    settings: tuple[str, ...]  # path=value, after the common ones
    first_seed: int  # lane i of the program is lane first_seed + i of the configuration
    num_seeds: int
    steps: int  # of each seed, when the member is done
    iterations: int  # the same in rows of each environment, as checkpoints count


# --------------------------------------------------------------------------- grids, files, products


def split_values(text: str) -> list[str]:
    """Split at commas outside brackets and quotes: "1,(2,3),'a,b'" has three values.

    Quotes around a value are taken off. Raises ConfigError for what does not close.
    """
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in _OPENING + _CLOSING:
            depth += 1 if character in _OPENING else -1
        elif character == "," and depth == 0:
            parts.append("")
            continue
        parts[-1] += character
    if quote or depth:
        raise ConfigError(f"a bracket or quote in {text!r} does not close")
    return [_unquote(part.strip()) for part in parts]


def _unquote(text: str) -> str:
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    return text[1:-1] if quoted else text


def parse_grid(text: str) -> list[str]:
    """Assignments of one dimension: "path=a,b" gives "path=a" and "path=b".

    A value that is itself a list stands in brackets: "path=[32,64],[64,64]". Raises ConfigError.
    """
    path, equals, values = text.partition("=")
    found = split_values(values)
    if not equals or not path.strip() or not all(found):
        raise ConfigError(
            f"cannot understand --grid={text!r}: it reads path=value,value, such as "
            "model.core=mamba2,gru (a list among the values stands in brackets)"
        )
    return [f"{path.strip()}={value}" for value in found]


def parse_lines(text: str) -> list[tuple[str, ...]]:
    """Assignments of each line of a sweep file.

    A line holds assignments path=value between blanks; a value with blanks, quotes or # stands in
    quotes, as in a shell; # begins a comment; empty lines count for nothing. Raises ConfigError.
    """
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise ConfigError(f"line {number} ({line!r}): {str(error).lower()}") from error
        for word in words:
            if not word.partition("=")[1]:
                raise ConfigError(f"line {number} ({line!r}): {word!r} is no assignment path=value")
        if words:
            found.append(tuple(words))
    if not found:
        raise ConfigError("the file names no member: each line holds assignments path=value")
    return found


def configurations(
    grids: Sequence[Sequence[str]], lines: Sequence[tuple[str, ...]] = ((),)
) -> list[tuple[str, ...]]:
    """The product of the lines of a file and the dimensions of a grid, in order.

    Raises ConfigError where a configuration assigns to one field twice, or occurs twice.
    """
    found = [(*line, *point) for line in lines for point in itertools.product(*grids)]
    for settings in found:
        paths = [setting.partition("=")[0].strip() for setting in settings]
        if twice := sorted({path for path in paths if paths.count(path) > 1}):
            raise ConfigError(f"{twice[0]} is set twice in one member ({' '.join(settings)})")
    if len(set(found)) < len(found):
        settings = next(s for s in found if found.count(s) > 1)
        raise ConfigError(f"the member {' '.join(settings)} is listed twice")
    return found


def pack(num_seeds: int, fit: int) -> list[tuple[int, int]]:
    """Spread the seeds over as few programs as hold them: (first seed, number of seeds) of each.

    Args:
      num_seeds: S of one configuration.
      fit: most seeds of one program.

    The sizes differ by one at most, so that at most two programs are compiled and none waits long
    for another. Raises ConfigError where not one seed fits.
    """
    if num_seeds < 1:
        raise ConfigError(f"--num_seeds={num_seeds} must be at least 1")
    if fit < 1:
        raise ConfigError("not one seed fits into a program")
    programs = -(-num_seeds // fit)
    size, larger = divmod(num_seeds, programs)
    counts = [size + (i < larger) for i in range(programs)]
    firsts = itertools.accumulate(counts[:-1], initial=0)
    return list(zip(firsts, counts, strict=True))


# ------------------------------------------------------------------------------- names and members


def member_name(settings: Sequence[str], seeds: tuple[int, int] | None = None) -> str:
    """Name of a member's workdir, from its own settings alone: "model.core=gru,gamma=0.9".

    Args:
      settings: path=value.
      seeds: (first, number), where the seeds of a configuration take several programs.

    Letters, digits and `. _ + - = ,` only. Where other characters were replaced, or the name is
    long, eight digits of a hash of the settings keep it unique.
    """
    pairs = [setting.partition("=") for setting in settings]
    plain = [(path.strip(), value.strip()) for path, _, value in pairs]
    if seeds is not None:
        plain.append(("seeds", f"{seeds[0]}-{seeds[0] + seeds[1] - 1}"))
    safe = [(path, _UNSAFE.sub("-", value)) for path, value in plain]
    name = ",".join(f"{path}={value}" for path, value in safe) or ALONE
    if safe == plain and len(name) <= _LONGEST:
        return name
    digest = hashlib.sha256("\0".join(map("=".join, plain)).encode()).hexdigest()[:8]
    return f"{name[:_LONGEST]}-{digest}"


def plan_members(common: Common, sizes: dict[tuple[str, ...], tuple[int, int]]) -> list[Member]:
    """The members of a sweep.

    Args:
      common: what they share.
      sizes: settings of each configuration -> (steps, iterations) of its whole run.
    """
    packs = pack(common.num_seeds, common.seeds_per_program or common.num_seeds)
    return [
        Member(
            member_name(settings, seeds if len(packs) > 1 else None),
            settings,
            *seeds,
            *sizes[settings],
        )
        for settings in sizes
        for seeds in packs
    ]


def train_command(
    python: str, common: Common, member: Member, workdir: Path, more: Sequence[str] = ()
) -> list[str]:
    """The command that trains a member, to be repeated until it is done.

    `more` are flags that change nothing of what is computed, and may be others another time.
    """
    flags = [
        f"--experiment={common.experiment}",
        f"--workdir={workdir}",
        f"--seed={common.seed}",
        f"--num_seeds={member.num_seeds}",
    ]
    flags += [f"--first_seed={member.first_seed}"] if member.first_seed else []
    flags += [f"--steps={common.steps}"] if common.steps is not None else []
    flags += ["--debug"] if common.debug else []
    flags += [f"--set={setting}" for setting in (*common.settings, *member.settings)]
    flags += [f"--sweep_inside={setting}" for setting in common.inside]
    return [python, "-m", "launch.train", *flags, *more]


# ------------------------------------------------------------------------------------ the manifest


def merge(
    root: Path, old: dict[str, Any] | None, common: Common, members: Sequence[Member]
) -> dict:
    """The manifest with the planned members added to what it held.

    Args:
      root: named in the messages.
      old: what `read_manifest` returned.
      common, members: the plan.

    Another grid in the same root adds members. Raises ConfigError where what all members share
    differs from the manifest (more steps are allowed), for the old ones would not be of one sweep.
    """
    shared = _plain(common)
    if old is not None:
        lines = [
            f"--{_FLAGS.get(key, key)}: {_shown(old['common'].get(key))} -> {_shown(value)}"
            for key, value in shared.items()
            if key != "steps" and old["common"].get(key) != value
        ]
        if lines:
            raise ConfigError(
                f"{root} belongs to another sweep ({'; '.join(lines)}); choose another --root or "
                "repeat what all its members share (another --grid or --file adds members)"
            )
        for member in members:
            before = old["members"].get(member.name)
            if before is not None and before["steps"] > member.steps:
                raise ConfigError(
                    f"{member.name} was to make {before['steps']} steps, and now "
                    f"{member.steps}; ask for more steps or choose another --root"
                )
    kept = {} if old is None else old["members"]
    added = {member.name: _plain(member._replace(name="")) for member in members}
    for entry in added.values():
        del entry["name"]
    return {"schema_version": SCHEMA_VERSION, "common": shared, "members": {**kept, **added}}


_FLAGS = {"settings": "set", "inside": "sweep_inside"}  # fields that are called otherwise


def _plain(record: Common | Member) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in record._asdict().items()}


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def members_of(manifest: dict[str, Any]) -> list[Member]:
    """The members that a manifest lists."""
    return [
        Member(**{**entry, "name": name, "settings": tuple(entry["settings"])})
        for name, entry in manifest["members"].items()
    ]


def read_manifest(root: Path) -> dict[str, Any] | None:
    """What `sweep.json` holds, or None where there is none. Raises ConfigError if damaged."""
    path = Path(root) / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["schema_version"]
        if version != SCHEMA_VERSION:
            raise ConfigError(
                f"{path} has schema_version {version}, and this version reads {SCHEMA_VERSION}"
            )
        _check_manifest(manifest)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} is not the manifest of a sweep ({error})") from error
    return manifest


def _check_manifest(manifest: dict[str, Any]) -> None:
    """Raise where a field is missing, or a name would lead out of the root."""
    manifest["common"]["experiment"]
    for member in members_of(manifest):
        if Path(member.name).name != member.name:
            raise ValueError(f"{member.name!r} is no name of a directory")
        int(member.steps), int(member.iterations)


def add_members(root: Path, common: Common, members: Sequence[Member]) -> None:
    """Write the manifest with these members among those it has; see `merge`.

    Commands that do so at once wait for each other. Raises ConfigError, also where the root cannot
    be used.
    """
    root = Path(root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with files.locked(root, wait=True):
            write_manifest(root, merge(root, read_manifest(root), common, members))
    except OSError as error:
        raise ConfigError(
            f"--root={root} cannot be written ({error.strerror}); name another directory"
        ) from error


def write_manifest(root: Path, manifest: dict[str, Any]) -> None:
    """Write `sweep.json` in one piece."""
    files.write_text(Path(root) / MANIFEST, json.dumps(manifest, indent=2) + "\n")
