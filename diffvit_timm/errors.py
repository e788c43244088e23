"""The error for bad input."""


class InputError(ValueError):
    """Input that the user can mend: one line that names the option, the value and the fix."""
