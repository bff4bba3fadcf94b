"""Lanes of environments with Gymnasium's interface, stepped in processes of their own.

`spaces` reads what they show and take, and `vector` steps them in our time convention. What a
process runs (`worker`, `group`, `dm_task`) imports no jax: it starts quickly and stays small.
"""
