"""The directory of a run: what lies where, how it is written whole, and read back."""
