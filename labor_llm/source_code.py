"""The code that classes rest on, as one hash: a change of it makes another run, another table, other tokens.

It is that of the modules of the classes, of all that these import of our package and of their own, directly or
not, and of the files beside these modules that they name, such as ``nlsy_variables.csv``.
"""

import ast
import hashlib
import re
import sys
import sysconfig
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

OURS = __name__.partition(".")[0]
INSTALLED = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}
"""Folders in which modules lie side by side that have nothing to do with each other."""


def code_hash(*parts: object) -> str:
    """SHA-256, in hex, of the code that classes or functions rest on; where it lies does not matter."""
    digest = hashlib.sha256()
    for name, path in sorted(modules(*parts).items()):
        for file in (path, *files_named(path)):
            digest.update(f"{name} {file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def modules(*parts: object) -> dict[str, Path]:
    """Name -> file of the modules that classes or functions rest on; one that has no file is left out."""
    names = [part.__module__ for part in parts]
    own = {OURS, *(name.partition(".")[0] for name in names)}
    beside = {folder for name in own if (folder := _folder(name)) is not None}
    found: dict[str, Path] = {}
    while names:
        name = names.pop()
        path = _file(name)
        if name in found or path is None:
            continue
        top = name.partition(".")[0]
        if top in own or _folder(top) in beside:
            found[name] = path
            names += _imports(path, name)
    return found


def files_named(module: Path) -> list[Path]:
    """The files beside a module whose names stand between quotation marks in it, other modules left out."""
    text = module.read_text(encoding="utf-8")
    names = set(re.findall(r"""["']([\w.-]+\.\w+)["']""", text))
    files = (module.with_name(name) for name in sorted(names) if not name.endswith(".py"))
    return [file for file in files if file.is_file()]


def _folder(top: str) -> Path | None:
    """Where a package lies, or a module that is in none; None for one that is installed or has no file."""
    path = _file(top)
    if path is None:
        return None
    folder = path.parent.parent if path.name == "__init__.py" else path.parent
    return None if folder in INSTALLED else folder


def _file(name: str) -> Path | None:
    """The source file of a module; None if it has none, or if there is no such module."""
    try:
        spec = getattr(sys.modules.get(name), "__spec__", None) or find_spec(name)
    except (ImportError, ValueError):  # a name within a module; a module without a specification
        spec = None
    origin = spec.origin if spec else getattr(sys.modules.get(name), "__file__", None)
    return Path(origin).resolve() if origin and origin.endswith(".py") else None


def _imports(path: Path, name: str) -> Iterator[str]:
    """The modules that a module imports, anywhere in it."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:  # a module of the package, or a name in the package's own file
                within = f"{base}.{alias.name}"
                yield within if _file(within) else base
