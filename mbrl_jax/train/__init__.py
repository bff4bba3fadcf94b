"""The shell around the loops: a run, from its first row to its pictures."""
