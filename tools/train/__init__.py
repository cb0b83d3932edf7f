"""Trains the small model that ships inside the package: data, vocabulary, rows of tokens, training, export, model card.

Each stage reads what the one before left in the work folder and writes its own; CONTRIBUTING.md has the commands.
"""
