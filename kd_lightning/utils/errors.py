"""The one kind of error that is shown to a user as a single line, without a traceback."""


class UserError(ValueError):
    """Something the user can put right; the message says what is wrong and the way out."""
