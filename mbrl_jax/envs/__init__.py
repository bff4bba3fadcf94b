"""Environments in one time convention."""
