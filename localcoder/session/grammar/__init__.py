"""Grammars: what a text has to be, and which tokens may come next for that."""
