"""Behaviours: how to act, and how to improve with a world model."""
