"""Run configurations: base.py defines every key, each other file changes what differs.

They are in the package too: `--config ellama.py:8b` finds them from any folder.
"""
