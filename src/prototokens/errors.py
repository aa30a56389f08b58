"""The one error that a user can mend."""


class InputError(ValueError):
    """Something the user gave cannot be used: the message says what, its bound, and the remedy.

    The command line prints the message on one line and exits with code 2.
    """
