"""Planners over sequences of bounded actions: pure functions of how sequences score."""
