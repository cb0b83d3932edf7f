"""The command `localcoder`: one click command per file."""
