"""Errors that users see as one sentence, without a traceback."""


class ConfigError(ValueError):
    """What the user asked for cannot be done: one sentence, shown without a traceback."""


class UnknownField(ConfigError):
    """A path names no field: of a part that is not there, or misspelt."""
