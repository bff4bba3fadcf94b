"""Where rows of metrics go beside the workdir: one file for each place."""
