"""Exceptions: for mistakes that the user can correct, and for an interrupted training."""


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
