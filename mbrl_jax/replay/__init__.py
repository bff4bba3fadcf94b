"""Replay: storage of any pytree on device, and samplers over it."""
