"""Exceptions: for mistakes that the user can correct, and for an interrupted training."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """An error that is reported as one line, without a traceback.

    The message says what is wrong, where, and how to correct it. Everything else that is
    raised is a bug of this package and keeps its traceback.
    """

    # A ValueError, so that users of the Python API catch it without knowing this class.


class Interrupted(Exception):
    """Training was stopped with Ctrl-C or SIGTERM; the message says in which epoch.

    Args:
        message: what was interrupted.
        code: exit code of the process.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@contextmanager
def explaining(where: str) -> Iterator[None]:
    """Report exceptions in creating or trying what the user configured as a UserError.

    Args:
        where: the setting at fault, such as ``optimizer``.

    Raises:
        UserError: with the first line of the original exception, which is its cause.
    """
    try:
        yield
    except Exception as error:
        chain = list(causes(error))
        if any(isinstance(cause, ImportError) for cause in chain):
            raise  # a missing package has a message of its own
        known = next((cause for cause in chain if isinstance(cause, UserError)), None)
        line = first_line(chain[-1])
        # A bug in the user's own code, perhaps.
        is_named = line.startswith(type(chain[-1]).__name__)
        hint = " (HYDRA_FULL_ERROR=1 shows where)" if is_named else ""
        raise UserError(str(known or f"{where}: {line}{hint}")) from error


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, with its type where that says more."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    is_lightnings = type(error).__module__.startswith("lightning.")
    is_usual = is_lightnings or isinstance(error, ValueError | TypeError | RuntimeError)
    is_sentence = is_usual and " " in text
    return text if is_sentence else f"{type(error).__name__}: {text}".removesuffix(": ")


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and those it was raised from, the first cause last."""
    while error is not None:
        yield error
        error = error.__cause__
