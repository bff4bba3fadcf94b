"""The other side of comparisons: PyTorch, eager, from the extra `bench`."""
