"""Errors that a user can mend."""


class InputError(ValueError):
    """Something the user gave cannot be used: the message says what, its bound, and the remedy.

    The command line prints the message on one line and exits with code 2.
    """


class UnknownModelError(InputError):
    """No model of that name is on this machine, and none can be fetched."""
