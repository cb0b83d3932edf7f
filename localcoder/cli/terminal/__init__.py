"""`localcoder run` on a terminal: a prompt with commands, and answers as they come."""
