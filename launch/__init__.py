"""Command-line entry points; run them from the repository: `python -m launch.train --help`."""
