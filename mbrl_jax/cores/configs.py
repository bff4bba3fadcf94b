"""Every core that a world model's config may name."""

from mbrl_jax.cores import gru, mamba, mamba2, memoryless, s4, s5, storm, transformer

CoreConfig = (
    mamba2.Config
    | mamba.Config
    | gru.Config
    | s4.Config
    | s5.Config
    | transformer.Config
    | memoryless.Config
    | storm.Config
)
