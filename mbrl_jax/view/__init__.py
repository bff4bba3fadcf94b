"""Pages about runs, from what lies in their directories."""
