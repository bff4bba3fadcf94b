"""The published sizes of TD-MPC2 (arXiv 2310.16828; common/__init__.py of its code).

`settings("19m")` says a size in words of the command line. Parameters of model, critics and policy
for the 24 numbers and 6 actions of walker, in millions (the published names count task embeddings
and the numbers of 80 tasks in):

    1m    5m    19m    48m    317m
    1.21  4.96  18.06  47.21  312.60
"""

from typing import NamedTuple


class Size(NamedTuple):
    """What differs between the presets; the rest is the same for all."""

    encoder_width: int
    width: int  # of everything else
    latent: int
    encoder_layers: int  # hidden ones
    critics: int = 5


SIZES = {
    "1m": Size(256, 384, 128, 1, 2),
    "5m": Size(256, 512, 512, 1),
    "19m": Size(1024, 1024, 768, 2),
    "48m": Size(1792, 1792, 768, 3),
    "317m": Size(4096, 4096, 1376, 4, 8),
}


def settings(name: str) -> tuple[str, ...]:
    """Assignments for `--set` that give TD-MPC2 a published size; KeyError for another name."""
    size = SIZES[name]
    return (
        f"model.width={size.width}",
        f"model.latent={size.latent}",
        f"model.encoder_width={size.encoder_width}",
        f"model.encoder_layers={size.encoder_layers}",
        f"behaviour.width={size.width}",
        f"behaviour.num_critics={size.critics}",
    )


def with_sizes() -> tuple[tuple[str, tuple[str, ...]], ...]:
    """`Experiment.with_parts`: a published `model.width` brings the rest of its size along."""
    return tuple((f"model.width={SIZES[name].width}", settings(name)) for name in SIZES)
