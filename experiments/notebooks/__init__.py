"""Notebooks that teach how the parts go together, and the command that executes them."""
