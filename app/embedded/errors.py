"""Owns the one exception of this package; it knows nothing about servers."""


class EmbeddedServerError(Exception):
    """An embedded server cannot be used; the message says what a person can do about it."""
