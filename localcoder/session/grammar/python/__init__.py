"""The syntax of Python: which bytes may come next in a file."""
