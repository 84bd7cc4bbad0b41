"""Functions and classes with some arguments filled in, as configurations give them."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from kd_lightning.utils.errors import UserError

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


def built(network: Callable[..., R], *arguments: Any, **settings: Any) -> R:
    """The network that a configuration describes.

    Raises:
        UserError: if its settings do not fit it.
    """
    try:
        return network(*arguments, **settings)
    except UserError:
        raise
    except (TypeError, ValueError, RuntimeError, ArithmeticError, AssertionError) as error:
        name = getattr(getattr(network, "func", network), "__name__", "the network")
        raise UserError(
            f"{name} cannot be built as configured: {str(error).splitlines()[0]}; see "
            "net@student=, net@teacher= and their settings"
        ) from error
