"""Experiments: one file each, with the command, the wall time and what to expect on top."""
