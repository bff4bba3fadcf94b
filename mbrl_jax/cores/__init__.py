"""Sequence cores: stacks of residual mixers over the kernels of `mbrl_jax.ssm`."""
