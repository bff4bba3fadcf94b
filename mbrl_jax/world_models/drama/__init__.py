"""Drama's world model; `published` reads the weights of the PyTorch code."""

from mbrl_jax.world_models.drama.model import (
    Config,
    Entries,
    Latent,
    decode,
    features,
    imagine,
    init,
    initial_latent,
    latent_at,
    loss,
    make,
    observe,
    observe_sequence,
    predict,
)

__all__ = [
    "Config",
    "Entries",
    "Latent",
    "decode",
    "features",
    "imagine",
    "init",
    "initial_latent",
    "latent_at",
    "loss",
    "make",
    "observe",
    "observe_sequence",
    "predict",
]
