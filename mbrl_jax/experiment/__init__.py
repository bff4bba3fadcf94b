"""Experiments as values: what they hold, how they are changed, stored and compared."""
