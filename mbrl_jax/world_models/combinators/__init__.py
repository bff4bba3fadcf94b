"""World models made of others: each config holds a `model`, which it wraps, and they nest.

`pessimistic.Config(model=early_stopped.Config(model=ensemble.Config()), penalty=1.0)` is MOPO's.
"""
