"""Studies of parts on their own: no environment loop, no behaviour."""
