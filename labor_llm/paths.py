"""Paths as users write them."""

from pathlib import Path


def from_home(path: Path) -> Path:
    """The path, with the home folder for a leading ``~/``; a file may be called ``~name``."""
    return path.expanduser() if path.parts[:1] == ("~",) else path
