"""The error a user can mend: bad input, said in one sentence (exit code 2)."""


class UsageError(ValueError):
    """Bad input: the message says what was required, what came and what to do."""
