"""Fills a repository's public address in where it is still open: the notebooks, and badges in README.

What: tools/colab/*.ipynb get it as REPOSITORY; README's links to them become badges that open Colab.
Command: python tools/set_repository.py OWNER/REPOSITORY   (on GitHub; may be repeated)
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"


def set_repository(name: str, root: Path = ROOT) -> list[Path]:
    """Writes the address into README and notebooks and returns the files that changed.

    Raises:
        ValueError: if `name` is not OWNER/REPOSITORY.
    """
    if not re.fullmatch(r"[A-Za-z0-9-]+/[A-Za-z0-9._-]+", name):
        raise ValueError(f"OWNER/REPOSITORY: must be a name on GitHub, got {name}.")
    changed = []
    for path in sorted((root / "tools" / "colab").glob("*.ipynb")):
        text = path.read_text(encoding="utf-8")
        filled = f'REPOSITORY = \\"https://github.com/{name}\\"'
        new = re.sub(r'REPOSITORY = \\"[^"\\]*\\"', lambda _: filled, text)  # noqa: B023
        changed += _write(path, text, new)
    path = root / "README.md"
    text = path.read_text(encoding="utf-8")
    changed += _write(path, text, _add_badges(text, name))
    return changed


def _add_badges(text: str, name: str) -> str:
    """Puts a badge before each link to a notebook, in place of an older one."""
    text = re.sub(rf"\[!\[Open in Colab\]\({re.escape(BADGE)}\)\]\([^)]*\) ", "", text)
    return re.sub(
        r"\[[^\]]*\]\((tools/colab/\w+\.ipynb)\)",
        lambda link: (
            f"[![Open in Colab]({BADGE})](https://colab.research.google.com/github/{name}"
            f"/blob/main/{link[1]}) {link[0]}"
        ),
        text,
    )


def _write(path: Path, old: str, new: str) -> list[Path]:
    if old == new:
        return []
    path.write_text(new, encoding="utf-8")
    return [path]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tools/set_repository.py OWNER/REPOSITORY")
    try:
        for file in set_repository(sys.argv[1]):
            print(f"wrote {file.relative_to(ROOT)}")
    except ValueError as error:
        sys.exit(str(error))
