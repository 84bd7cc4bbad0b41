"""Helpers for partially applied functions and classes from configurations."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from kd_lightning.utils.errors import UserError

R = TypeVar("R")


def bare(function: Callable[..., R]) -> Callable[..., R]:
    """Return a plain ``functools.partial`` for a function built with ``_partial_: true``.

    Hydra's partial checks at every call whether its target is allowed, which takes longer
    than most losses. Functions that run in every step should therefore be unwrapped once.

    Args:
        function: any callable; one that is no partial is returned as it is.

    >>> bare(partial(max, 3))(2)
    3
    """
    if not isinstance(function, partial):
        return function
    # rebuilt from its parts, because Hydra's is a subclass that overrides __call__
    return partial(function.func, *function.args, **function.keywords)


def built(network: Callable[..., R], *arguments: Any, **settings: Any) -> R:
    """Build a network, reporting invalid settings as a UserError.

    Args:
        network: a class or factory.
        *arguments: its positional arguments.
        **settings: its keyword arguments.

    Raises:
        UserError: if the network rejects its settings.
    """
    try:
        return network(*arguments, **settings)
    except UserError:
        raise
    # What torch, torchvision and timm raise for wrong settings: negative sizes, unknown
    # keywords, division by a width of 0. Anything else is a bug and keeps its traceback.
    except (TypeError, ValueError, RuntimeError, ArithmeticError, AssertionError) as error:
        name = getattr(getattr(network, "func", network), "__name__", "the network")
        raise UserError(
            f"{name} cannot be built as configured: {str(error).splitlines()[0]}; see "
            "net@student=, net@teacher= and their settings"
        ) from error
