"""The one exception for a user's mistake, which the command line prints as a single line."""

from __future__ import annotations


class UsageError(ValueError):
    """Input or configuration that the user can mend; the message names the value and the remedy.

    The command line prints it as one line without a traceback and exits with code 2. Everything
    else (an ``AssertionError``, say) is a defect of ours and keeps its traceback.
    """


def mistake_behind(error: BaseException) -> UsageError | None:
    """Returns the user's mistake that an error was raised from, as parsers wrap what they catch.

    Args:
        error: any.

    Example:
        >>> try:
        ...     raise ValueError("wrapped") from UsageError("alpha is -1")
        ... except ValueError as error:
        ...     mistake_behind(error)
        UsageError('alpha is -1')
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UsageError):
        cause = cause.__cause__
    return cause
