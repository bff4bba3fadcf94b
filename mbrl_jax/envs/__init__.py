"""Environments in one time convention."""

from mbrl_jax.envs.names import named, nearest

__all__ = ["named", "nearest"]
