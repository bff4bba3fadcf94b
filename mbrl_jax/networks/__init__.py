"""Small flax modules: encoders, decoders, heads, norms and their initialisers."""
