"""Flags of more than one command here: a name can be defined only once in a process."""

from absl import flags

NAME = flags.DEFINE_string("name", None, "Name of what is written, without its ending.")
