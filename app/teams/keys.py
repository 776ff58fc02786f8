"""The form of an API key: `dg_<8 id>_<43 secret><6 crc>`. Pure.

The checksum lets scanners and clients tell a mistyped key from a revoked one; it proves nothing.
"""

import re
import secrets
import zlib
from dataclasses import dataclass

ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
ID_CHARS, SECRET_CHARS, CRC_CHARS = 8, 43, 6
FORM = re.compile(r"dg_([0-9a-z]{8})_([A-Za-z0-9_-]{43})([0-9a-z]{6})")


@dataclass(frozen=True, slots=True)
class KeyParts:
    """A well-formed key: the id it is looked up by, and the secret whose HMAC is compared."""

    key_id: str
    secret: str


def new_key() -> tuple[str, KeyParts]:
    """Return a fresh key as text, with its parts: 256 random bits of secret."""
    key_id = "".join(secrets.choice(ALPHABET) for _ in range(ID_CHARS))
    secret = secrets.token_urlsafe(32)
    return f"dg_{key_id}_{secret}{_checksum(key_id, secret)}", KeyParts(key_id, secret)


def find_parts(text: str) -> KeyParts | None:
    """Return the parts of a key, or None when it cannot be one of ours.

    >>> text, parts = new_key()
    >>> find_parts(text) == parts, len(text)
    (True, 61)
    >>> find_parts(text[:-1]) is None, find_parts("sk-abc") is None
    (True, True)
    """
    found = FORM.fullmatch(text)
    if found is None:
        return None
    key_id, secret, checksum = found.groups()
    return KeyParts(key_id, secret) if checksum == _checksum(key_id, secret) else None


def _checksum(key_id: str, secret: str) -> str:
    """Write a CRC-32 in six characters of base 36; six hold 31 bits, so the top bit is dropped."""
    value = zlib.crc32(f"{key_id}_{secret}".encode()) & 0x7FFF_FFFF
    digits = ""
    for _ in range(CRC_CHARS):
        value, digit = divmod(value, 36)
        digits = ALPHABET[digit] + digits
    return digits
