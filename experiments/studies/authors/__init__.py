"""The authors' own running code beside ours: see `__main__`."""
