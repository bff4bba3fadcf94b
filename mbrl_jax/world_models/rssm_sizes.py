"""The published sizes of DreamerV3 (arXiv 2301.04104; configs.yaml of its code since 2024).

`sized("12m")` is the world model for images at that size; actor and critic have three layers of
`SIZES["12m"].units`. `settings` says the same in words of the command line. Parameters of model,
actor and critic for 64×64 colour images and Pong's six actions, in millions:

    1m    12m   25m   50m   100m  200m   400m
    0.69  10.5  23.5  41.6  93.5  165.9  372.9
"""

from typing import NamedTuple

from mbrl_jax import optim
from mbrl_jax.networks import decoders, encoders
from mbrl_jax.world_models import rssm


class Size(NamedTuple):
    """What differs between the presets; the rest is the same for all."""

    deter: int
    hidden: int
    classes: int
    depth: int  # of convolutions
    units: int  # of heads, actor and critic, and of the nets for vectors


SIZES = {
    "1m": Size(512, 64, 4, 4, 64),
    "12m": Size(2048, 256, 16, 16, 256),
    "25m": Size(3072, 384, 24, 24, 384),
    "50m": Size(4096, 512, 32, 32, 512),
    "100m": Size(6144, 768, 48, 48, 768),
    "200m": Size(8192, 1024, 64, 64, 1024),
    "400m": Size(12288, 1536, 96, 96, 1536),
}
# LaProp with 1,000 steps of warm-up; each tensor is clipped by its own norm, and nothing globally.
OPTIMISER = optim.Config(clip_norm=1e30, clip_ratio=0.3)


def sized(name: str, images: bool = True) -> rssm.Config:
    """The world model of a published size; raises KeyError for another name."""
    size = SIZES[name]
    decode = decoders.Pooled(size.depth, units=size.units, deter=size.deter)
    pooled = encoders.Pooled(size.depth), decode
    dense = (part(size.units, 3, "dreamerv3") for part in (encoders.Dense, decoders.Dense))
    encoder, decoder = pooled if images else dense
    return rssm.Config(
        deter=size.deter,
        hidden=size.hidden,
        classes=size.classes,
        encoder=encoder,
        decoder=decoder,
        head_width=size.units,
        reconstruction="sigmoid" if images else "symlog",
        optimiser=OPTIMISER,
    )


def settings(name: str, images: bool = True) -> tuple[str, ...]:
    """Assignments for `--set` that give a system of DreamerV3 a published size."""
    deter, hidden, classes, depth, units = SIZES[name]
    of_nets = {"encoder.width": units, "decoder.width": units}
    if images:
        of_nets = {"encoder.depth": depth, "decoder.depth": depth, "decoder.units": units}
        of_nets["decoder.deter"] = deter
    of_model = {"deter": deter, "hidden": hidden, "classes": classes, "head_width": units} | of_nets
    of_behaviour = {"actor_width": units, "critic_width": units}
    return tuple(f"model.{path}={value}" for path, value in of_model.items()) + tuple(
        f"behaviour.{path}={value}" for path, value in of_behaviour.items()
    )


def with_sizes(images: bool = True) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """`Experiment.with_parts`: a published `model.deter` brings the rest of its size along."""
    return tuple((f"model.deter={SIZES[name].deter}", settings(name, images)) for name in SIZES)
