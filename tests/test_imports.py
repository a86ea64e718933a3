"""Imports run one way, from the command line down to the layers."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import longtake

PACKAGE = Path(longtake.__file__).parent
LAYERS = [
    {"longtake.errors", "longtake.config", "longtake.files", "longtake.progress"},
    {"longtake.nn"},
    {"longtake.data", "longtake.rollout", "longtake.story"},
    {"longtake.systems"},
    {"longtake.metrics"},
    {"longtake.train"},
    {"longtake.api", "longtake.report"},
    {"longtake.commands"},
    {"longtake.cli"},
]
"""Lowest first; a module may import its own layer and those below."""
EVERYWHERE = {"longtake"}
"""The package itself: its version, and its public names, which it imports when they are asked for."""
ENTRANCES = {"longtake", "longtake.__main__"}


def module(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Every module imported anywhere in a file; `from a import b` names a.b where that is a module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            for alias in node.names:
                inner = PACKAGE.parent / node.module.replace(".", "/") / alias.name  # type: ignore[union-attr]
                nested = inner.is_dir() or inner.with_suffix(".py").is_file()
                found.add(f"{node.module}.{alias.name}" if nested else str(node.module))
    return found


FILES = {module(p): imports(p) for p in sorted(PACKAGE.rglob("*.py"))}


def within(name: str, packages: set[str]) -> bool:
    return any(name == p or name.startswith(f"{p}.") for p in packages)


def layer(name: str) -> int:
    (found,) = [i for i, packages in enumerate(LAYERS) if within(name, packages)]
    return found


def own(names: set[str]) -> set[str]:
    return {n for n in names if within(n, {"longtake"})} - EVERYWHERE


@pytest.mark.parametrize("name", sorted(set(FILES) - ENTRANCES))
def test_nothing_imports_a_higher_layer(name):
    higher = {other for other in own(FILES[name]) if layer(other) > layer(name)}
    assert not higher


@pytest.mark.parametrize("name", [n for n in FILES if within(n, {"longtake.nn"})])
def test_nn_knows_only_itself(name):
    assert all(within(other, {"longtake.nn", "longtake.errors"}) for other in own(FILES[name]))


@pytest.mark.parametrize("name", [n for n in FILES if within(n, {"longtake.systems"})])
def test_a_system_knows_no_other_system(name):
    folders = {p.name for p in (PACKAGE / "systems").iterdir() if (p / "__init__.py").is_file()}
    part = name.removeprefix("longtake.systems").strip(".").split(".")[0]
    foreign = {f"longtake.systems.{f}" for f in folders if f != part}
    assert not {other for other in FILES[name] if within(other, foreign)}


def test_the_loop_names_no_system():
    names = set().union(*(FILES[n] for n in FILES if within(n, {"longtake.train", "longtake.metrics"})))
    folders = {f"longtake.systems.{p.parent.name}" for p in (PACKAGE / "systems").glob("*/__init__.py")}
    assert not {other for other in names if within(other, folders)}


@pytest.mark.parametrize("name", FILES)
def test_forbidden_libraries(name):
    assert not {n for n in FILES[name] if within(n, {"torchvision", "torchaudio", "dill", "cloudpickle", "joblib"})}
    if name != "longtake.systems.foreign":
        assert not {n for n in FILES[name] if within(n, {"pickle", "_pickle", "pickletools", "shelve", "marshal"})}
        text = (PACKAGE.parent / name.replace(".", "/")).with_suffix(".py")
        if text.is_file():
            assert "torch.load(" not in text.read_text()


def test_help_does_not_wait_for_pytorch():
    code = "import sys, longtake.cli; longtake.cli.parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
