"""Small tables and pictures of finished runs, and the command that makes them."""
