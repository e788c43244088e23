"""The error for bad input."""


class InputError(Exception):
    """Input that the user can mend: one line that names the option, the value and the fix."""
