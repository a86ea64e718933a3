"""Where new scenes begin."""

from __future__ import annotations

from longtake.errors import UserError
from longtake.story import Story


def common_cuts(stories: list[Story]) -> list[int]:
    """Frames at which new scenes begin in all of these resolved stories.

    Raises:
        UserError: they do not cut at the same frames.
    """
    found = [story.cuts() for story in stories]
    if any(own != found[0] for own in found):
        raise UserError("stories made together must cut at the same times; make them one by one", code=2)
    return found[0]
