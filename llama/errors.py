"""The exception for bad input, as opposed to a bug in this code."""


class UserError(ValueError):
    """Bad input: an option, a file, a field. Its message is one line that says what to do next.

    Scripts print it and exit with status 2. Every other exception is a bug of ours and shows its
    traceback.
    """
