"""Sweeps: what is to be run, how far it is, and who runs it."""
