"""Reward stories that match the request exactly, as decided by the parser of the built-in grammar."""

from __future__ import annotations

from positron import stories


def story_request(prompt: str, completion: str) -> float:
    """Return 1 if the completion is a complete story of the grammar with the requested name, object, place and plot, else 0.

    The reward is stricter than the measure `followed` of `positron evaluate --instruct`: it is 0 for an inconsistent story,
    such as one in which a red ball is green later. Raises ValueError if the prompt is not a request of `stories.ask`.
    """
    return float(stories.fulfils(completion, _request(prompt)))


def story_error(prompt: str, completion: str) -> int | None:
    """Return the number of characters up to and including the first wrong one, or None if no character is wrong.

    A character is wrong if no story that fulfils the request of the prompt begins with the completion up to this character. The
    reward `story_request` is then 0, whatever text follows. If the completion is only the beginning of such a story, no
    character is wrong. Raises ValueError if the prompt is not a request of `stories.ask`.
    """
    error = stories.first_error(completion, _request(prompt))
    return None if error is None else error + 1


def _request(prompt: str) -> stories.Request:
    request = stories.read_request(prompt)
    if request is None:
        raise ValueError("the prompt is not a request for a built-in story")
    return request
