"""Agents: a world model, a behaviour and a replay composed into one thing that acts and learns.

The type of the config decides how they learn together: `apart`, `branched` or `joint`.
"""
