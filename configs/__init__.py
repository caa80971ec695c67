"""Run configurations: base.py defines every key, each other file changes what differs."""
