"""State-space duality, the recurrence of Mamba-2: see `recurrence`."""

from mbrl_jax.ssm.ssd.recurrence import (
    METHODS,
    SSDEntries,
    auto_method,
    ssd,
    ssd_state_at,
    ssd_step,
    ssd_stream,
)

__all__ = ["METHODS", "SSDEntries", "auto_method", "ssd", "ssd_state_at", "ssd_step", "ssd_stream"]
