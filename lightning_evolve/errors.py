"""The one exception for a user's mistake, which the command line prints as a single line."""

from __future__ import annotations


class UsageError(ValueError):
    """Input or configuration that the user can mend; the message names the value and the remedy.

    The command line prints it as one line without a traceback and exits with code 2. Everything
    else (an ``AssertionError``, say) is a defect of ours and keeps its traceback.
    """
