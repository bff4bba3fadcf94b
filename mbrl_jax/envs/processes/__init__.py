"""Lanes of environments with Gymnasium's interface, stepped in processes of their own.

`spaces` reads what they show and take, `vector` steps them in our time convention, and `worker`
holds what a process runs: it imports no jax, so that a process starts quickly and stays small.
"""
