"""The one exception that speaks to the user."""


class UserError(Exception):
    """Something the user can mend.

    The message is one sentence that says what is wrong, where, and what to do. The command line prints it
    without a traceback and exits with `code` (1: the work failed, 2: the command was wrong).
    """

    def __init__(self, message: str, code: int = 1):
        super().__init__(message)
        self.code = code
