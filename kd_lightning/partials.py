"""Functions with some arguments filled in, as configurations give them."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

R = TypeVar("R")


def bare(function: Callable[..., R]) -> Callable[..., R]:
    """An ordinary partial for what ``_partial_: true`` makes of a function.

    Hydra's own checks at every call whether its target is allowed, which takes longer than
    most losses; for what runs in every step, once is enough.

    >>> bare(partial(max, 3))(2)
    3
    """
    if not isinstance(function, partial):
        return function
    return partial(function.func, *function.args, **function.keywords)
