"""The two words of an option that is a choice."""

from enum import StrEnum


class Switch(StrEnum):
    """A choice that is made or not made."""

    ON = "on"
    OFF = "off"
