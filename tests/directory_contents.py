"""What lies in a directory, for tests that say nothing was changed."""

import hashlib


def contents(directory):
    """Says what lies below a directory: every path, and the hash of every file."""
    return {
        str(path.relative_to(directory)): path.is_file()
        and hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if "__pycache__" not in path.parts
    }
