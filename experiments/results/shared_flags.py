"""Flags of more than one command here: a name can be defined only once in a process."""

from absl import flags

NAME = flags.DEFINE_string("name", None, "Name of the table; with collect_sweep also of its rows.")
