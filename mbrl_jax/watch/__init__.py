"""A page that follows one run, from what lies in its directory."""
