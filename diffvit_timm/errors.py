"""The error for bad input."""


class InputError(Exception):
    """Input that the user can mend: one line that names the option, the value and the fix."""


def require_at_least(least: int, **options: int) -> None:
    """Refuse a smaller number, naming the option (checkpoint_every is --checkpoint-every).

    Raises:
        InputError: the first that is too small.
    """
    for name, value in options.items():
        if value < least:
            raise InputError(f"--{name.replace('_', '-')} {value} must be at least {least}")
