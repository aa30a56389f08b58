"""Errors that a user can mend."""


class InputError(ValueError):
    """Something the user gave cannot be used: the message says what, its bound, and the remedy.

    The command line prints the message on one line and exits with code 2.
    """


MEMORY_RAN_OUT = "memory ran out; ask for less at a time, such as fewer restarts, a shorter text or batch"
"""What to tell the user of an error of which `memory_ran_out` is true."""


def memory_ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a device (`torch.OutOfMemoryError`) or on the host."""
    host = isinstance(error, MemoryError) or "can't allocate memory" in str(error)
    return host or type(error).__name__ == "OutOfMemoryError"


class UnknownModelError(InputError):
    """No model of that name is on this machine, and none can be fetched."""
