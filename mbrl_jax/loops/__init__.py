"""The training loop as pure functions of one seed: phases, and what an iteration does."""
