"""The live view of a run: a local web page (`python -m launch.watch`). Nothing here needs JAX."""
