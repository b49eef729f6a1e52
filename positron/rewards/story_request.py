"""Reward stories that tell exactly what was requested: the grammar's parser decides."""

from __future__ import annotations

from positron import stories


def story_request(prompt: str, completion: str) -> float:
    """Return 1 if the completion is a whole story of the grammar with the requested name, object, place and plot, else 0.

    Unlike `followed` of `positron evaluate --instruct`, the reward does not forgive inconsistencies, such as a red ball
    that is green later. Raises ValueError if the prompt is not a request of `stories.ask`.
    """
    request = stories.read_request(prompt)
    if request is None:
        raise ValueError("the prompt is not a request for a built-in story")
    return float(stories.fulfils(completion, request))
