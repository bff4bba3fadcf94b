"""A trained policy in one file, for machines that have JAX and NumPy alone."""
