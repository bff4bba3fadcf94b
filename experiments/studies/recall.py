"""Which sequence cores know a room again? Two rooms after S4WM (arXiv 2307.02064), by delay.

    python -m experiments.studies.recall
    python -m experiments.studies.recall --cores=dplr,gru --delays=16 --seeds=100 --updates=500
    python -m experiments.studies.recall --debug --out=/tmp/recall.csv

An agent walks about in one of two rooms (`envs/tasks/rooms.py`, 5 x 5 places, two objects of four
colours) for ten rows, goes through the door, walks about in the other room for `delay` rows, and
comes back. A core reads picture and action, row by row, and draws the next picture. Half of the
loss is the picture of the room that is come back to, half the mean of all pictures. Judged is the
first picture after the return, on 256 fresh walks of each seed:

    recalled  share of the room's objects drawn at their place in their colour (more likely than
              not, and the likeliest colour there); 0 without a memory
    exact     share of rooms drawn with every object and with no other
    mse       squared error of the planes of objects, as S4WM has it of pixels

Cores have 144,000 to 152,000 parameters with the layer that draws, 2 layers each (S4: 2 and a
feed-forward layer), the same walks, 5,000 updates of 32 walks with Adam at 1e-3, and seeds in one
program. This is the memory of S4WM's models alone, without encoders and latents.

Criterion, set before the run (`--seeds=0,1,2`): S4 with its own kernel (`dplr`) recalls at least
0.9 at every delay up to 128 on 3 of 3 seeds, and the GRU less than 0.5 at 128 on 3 of 3. The
memoryless core has to stay below 0.05, or something else than memory does it. Settings were not
searched; who searches takes `--seeds=100`. Prints the table and writes
`experiments/results/recall.csv`, core by core and delay by delay: what is there with the same
updates is not trained again.
"""

import csv
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from mbrl_jax.cores import dplr, gru, mamba2, mamba3, memoryless, s4, s5, transformer
from mbrl_jax.envs.tasks import rooms
from mbrl_jax.types import Array, Key, PyTree

ROOMS = rooms.Config(size=5, objects=2, colours=4)
LOOK = 10  # rows in the first room
BATCH, TEST, RATE, CLIP = 32, 256, 1e-3, 1.0
PARAMETERS = 150_000  # about: no core has 5 % more or less
CORES: dict[str, Any] = {
    "dplr": dplr.Config(96, 2),
    "s4": s4.Config(140, 2),
    "s5": s5.Config(120, 2),
    "mamba2": mamba2.Config(96, 2, head_size=24),
    "mamba3": mamba3.Config(96, 2, head_size=24),
    "gru": gru.Config(100, 2),
    "transformer": transformer.Config(72, 2, heads=4, window=192),
    "memoryless": memoryless.Config(120, 2),
}
COLUMNS = ("core", "delay", "seed", "recalled", "exact", "mse", "parameters", "updates")

# Other studies have flags of these names: who imports this one gets them apart.
FLAGS = flags.FLAGS if __name__ == "__main__" else flags.FlagValues()
_LIST = functools.partial(flags.DEFINE_list, flag_values=FLAGS)
_CORES = _LIST("cores", list(CORES), "Cores.")
_DELAYS = _LIST("delays", ["16", "32", "64", "128"], "Rows in the other room.")
_SEEDS = _LIST("seeds", ["0", "1", "2"], "Seeds, trained in one program.")
_UPDATES = flags.DEFINE_integer("updates", 5_000, "Gradient steps.", flag_values=FLAGS)
_DEBUG = flags.DEFINE_bool(
    "debug", False, "Three updates of two walks, one seed, a delay of 8.", flag_values=FLAGS
)
_OUT = flags.DEFINE_string(
    "out", None, "The table; default: the one in experiments/results.", flag_values=FLAGS
)


class Sizes(NamedTuple):
    """How much is done."""

    updates: int
    batch: int = BATCH
    test: int = TEST


# ------------------------------------------------------------------------------------------- walks


class Walk(NamedTuple):
    """T = LOOK + delay + 1 rows; the last is the first one back in the first room."""

    pictures: Array  # [T, size, size, 1 + colours] bool
    actions: Array  # [T - 1] int32
    rooms: Array  # [T] int32


def walk(key: Key, delay: int) -> Walk:
    """A walk through both rooms; the first is the left one or the right one."""
    key, house_key = jax.random.split(key)
    start = rooms.draw(ROOMS, house_key)
    through = jnp.where(start.room == 0, rooms.RIGHT, rooms.LEFT)
    back = jnp.where(start.room == 0, rooms.LEFT, rooms.RIGHT)
    first = jnp.where(start.room == 0, ROOMS.size - 1, 0)  # column of the first room's door
    doors = jnp.stack([first, ROOMS.size - 1 - first])

    def row(house, t):
        returning = t >= LOOK
        left = jnp.where(returning, LOOK + delay - 1, LOOK - 1) - t  # moves before the door
        action = _stroll(jax.random.fold_in(key, t), house.place, doors[1 * returning], left)
        action = jnp.where(left == 0, jnp.where(returning, back, through), action)
        after = rooms.move(ROOMS, house, action)
        return after, (rooms.picture(ROOMS, after), action, after.room)

    pictures, actions, where = jax.lax.scan(row, start, jnp.arange(LOOK + delay))[1]
    pictures = jnp.concatenate([rooms.picture(ROOMS, start)[None], pictures])
    return Walk(pictures, actions, jnp.concatenate([start.room[None], where]))


def _stroll(key: Key, place: Array, door: Array, left: Array) -> Array:
    """A random move inside the room after which the door (its column) can be reached in time."""
    target = jnp.stack([jnp.int32(ROOMS.size // 2), door])
    after = place + jnp.asarray(rooms.MOVES)
    inside = ((after >= 0) & (after < ROOMS.size)).all(-1)
    near = jnp.abs(after - target).sum(-1) < left
    # At the worst one goes towards the door: the rows in a room are enough for the longest way.
    return jax.random.categorical(key, jnp.where(inside & near, 0.0, -jnp.inf)).astype(jnp.int32)


# ---------------------------------------------------------------------------------------- training


def init(core: Any, key: Key) -> PyTree:
    """Parameters of the core and of the layer that draws."""
    core_key, head_key = jax.random.split(key)
    cells = ROOMS.size**2 * (1 + ROOMS.colours)
    weights = jax.random.normal(head_key, (core.width, cells)) / core.width**0.5
    return core.init(core_key), weights, jnp.zeros(cells)


def draw(core: Any, params: PyTree, walks: Walk) -> Array:
    """Logits of the pictures of rows 1 … T - 1: [B, T - 1, size, size, 1 + colours]."""
    weights, kernel, bias = params
    before = walks.pictures[:, :-1].reshape(*walks.actions.shape, -1)
    xs = jnp.concatenate([before, jax.nn.one_hot(walks.actions, len(rooms.MOVES))], -1)
    never = jnp.zeros(walks.actions.shape[1:], bool)
    outputs = jax.vmap(lambda xs: core.unroll(weights, None, xs, never)[1])(xs)
    return (outputs @ kernel + bias).reshape(walks.pictures[:, 1:].shape)


def loss(core: Any, params: PyTree, walks: Walk) -> Array:
    """Cross-entropy a picture: half of the last row, half of the mean over all."""
    errors = optax.sigmoid_binary_cross_entropy(draw(core, params, walks), walks.pictures[:, 1:])
    errors = errors.sum((-3, -2, -1)).mean(0)
    return (errors[-1] + errors.mean()) / 2


def scores(logits: Array, picture: Array) -> tuple[Array, Array, Array]:
    """(recalled, exact, mse) [] of drawings [B, size, size, 1 + colours] of pictures."""
    chance, wanted = jax.nn.sigmoid(logits[..., 1:]), picture[..., 1:]
    likeliest = chance == chance.max(-1, keepdims=True)
    named = likeliest & (chance > 0.5)
    exact = (named == wanted).all((-3, -2, -1))
    return (named & wanted).sum() / wanted.sum(), exact.mean(), jnp.square(chance - wanted).mean()


def train(name: str, delay: int, sizes: Sizes, key: Key) -> tuple[Array, Array, Array]:
    """Scores of one seed."""
    core = CORES[name].make(ROOMS.size**2 * (1 + ROOMS.colours) + len(rooms.MOVES))
    init_key, train_key, test_key = jax.random.split(key, 3)
    adam = optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(RATE))
    walks = lambda key, num: jax.vmap(walk, (0, None))(jax.random.split(key, num), delay)

    def step(state, key):
        params, opt = state
        grads = jax.grad(functools.partial(loss, core))(params, walks(key, sizes.batch))
        change, opt = adam.update(grads, opt, params)
        return (optax.apply_updates(params, change), opt), None

    params = init(core, init_key)
    keys = jax.random.split(train_key, sizes.updates)
    (params, _), _ = jax.lax.scan(step, (params, adam.init(params)), keys)
    # In groups of a batch, so that judging takes no more memory than training.
    groups = jax.random.split(test_key, sizes.test // sizes.batch)

    def judge(key):
        seen = walks(key, sizes.batch)
        return scores(draw(core, params, seen)[:, -1], seen.pictures[:, -1])

    return jax.tree.map(jnp.mean, jax.lax.map(judge, groups))


def num_parameters(name: str) -> int:
    """Of a core, with the layer that draws."""
    core = CORES[name].make(ROOMS.size**2 * (1 + ROOMS.colours) + len(rooms.MOVES))
    shapes = jax.eval_shape(functools.partial(init, core), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


# --------------------------------------------------------------------------------------- the table


def measure(name: str, delay: int, seeds: list[int], sizes: Sizes) -> list[dict[str, Any]]:
    """A row for each seed."""
    run = jax.jit(jax.vmap(functools.partial(train, name, delay, sizes)))
    found = run(jnp.stack([jax.random.key(seed) for seed in seeds]))
    numbers = [np.asarray(column, np.float64).round(5).tolist() for column in found]
    more = (num_parameters(name), sizes.updates)
    rows = zip(seeds, *numbers, strict=True)
    return [dict(zip(COLUMNS, (name, delay, *row, *more), strict=True)) for row in rows]


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a table, if there is one."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """The table."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(_: list[str]) -> None:
    """Train, print, write."""
    out = Path(_OUT.value or Path(__file__).resolve().parents[1] / "results" / "recall.csv")
    sizes = Sizes(3, 2, 2) if _DEBUG.value else Sizes(_UPDATES.value)
    seeds = [0] if _DEBUG.value else [int(seed) for seed in _SEEDS.value]
    rows = read(out)
    known = {tuple(str(row[c]) for c in ("core", "delay", "seed", "updates")) for row in rows}
    for name in _CORES.value:
        for delay in [8] if _DEBUG.value else map(int, _DELAYS.value):
            wanted = {(name, str(delay), str(seed), str(sizes.updates)) for seed in seeds}
            if wanted <= known:
                continue
            keys = {key[:3] for key in wanted}
            rows = [row for row in rows if tuple(map(str, list(row.values())[:3])) not in keys]
            more = measure(name, delay, seeds, sizes)
            rows = rows + more
            for row in more:
                print("  ".join(str(value) for value in row.values()), flush=True)
            write(out, rows)


if __name__ == "__main__":
    app.run(main)
