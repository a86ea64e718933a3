"""Records of experiments: made once, never mixed with those of other options, published on request."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from longtake.files import write_text


def once(path: Path, options: dict[str, Any], make: Callable[[], dict]) -> dict:
    """The record at `path`, made if it is not there; `options` are all that it depends on beside its name.

    Raises:
        SystemExit: it was made with other options.
    """
    options = json.loads(json.dumps(options))  # as they are read back: lists for tuples
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({**make(), "made_with": options}, indent=1) + "\n")
    record = json.loads(path.read_text())
    if record.get("made_with") != options:
        found = record.get("made_with")
        raise SystemExit(f"{path} was made with {found}, not {options}; choose another --output or remove it")
    return record


def read(folder: str | Path, pattern: str) -> list[dict]:
    """All records of a folder whose names match, in the order of their names."""
    return [json.loads(path.read_text()) for path in sorted(Path(folder).glob(pattern))]


def alike(records: list[dict]) -> list[dict]:
    """Records that are averaged, which must have been made with the same options.

    Raises:
        SystemExit: they were not.
    """
    made = [record.get("made_with") for record in records]
    if any(options != made[0] for options in made):
        different = next(options for options in made if options != made[0])
        raise SystemExit(
            f"records of one arm were made with {made[0]} and {different}; keep them in folders of their own"
        )
    return records


def publish(path: Path, content: Any) -> None:
    """Replace a file of docs/results by what is known now.

    Raises:
        SystemExit: nothing is known.
    """
    if not content:
        raise SystemExit(f"there are no records for {path.name}; name the --output of a run")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=1) + "\n")
