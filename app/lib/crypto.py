"""Secrets at rest, message tags, and the packing of bodies.

Owns the one secret key: every purpose gets its own subkey from it by HKDF, so that no purpose can be played against
another. It must not know what is sealed, where it is stored, or where the secret comes from.
"""

import hashlib
import hmac
import os
import zlib
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

SECRET_MIN_CHARS = 32
_APPLICATION = b"dashgate/v1"
_MAX_PURPOSES = 64

# A sealed value: version, key id, nonce, then ciphertext with its tag at the end.
_VERSION = b"\x01"
_KEY_ID_BYTES = 4
_NONCE_BYTES = 12
_TAG_BYTES = 16
_HEADER_BYTES = len(_VERSION) + _KEY_ID_BYTES

# Below this zlib saves less than its own call costs.
PACK_FROM_BYTES = 200
UNPACKED_MAX_BYTES = 64 * 1024 * 1024
_PLAIN, _DEFLATED = b"\x00", b"\x01"


class CryptoError(Exception):
    """The root of this module's errors.

    CryptoError
    ├── WeakSecret    the secret is too short
    ├── Unsealable    a sealed value does not open: another key, another place, or altered bytes
    └── Unpackable    packed bytes are damaged, or larger than allowed
    """


class WeakSecret(CryptoError):
    """The secret is shorter than 32 characters."""


class Unsealable(CryptoError):
    """The value does not open with this key at this place."""


class Unpackable(CryptoError):
    """The packed bytes are damaged, or unpack to more than allowed."""


class Keyring:
    """Everything that may be done with the secret key; holds subkeys, never shows them."""

    def __init__(self, secret: str) -> None:
        """Derive the subkeys from `secret`.

        Raises: WeakSecret.
        """
        if len(secret) < SECRET_MIN_CHARS:
            raise WeakSecret(f"the secret needs at least {SECRET_MIN_CHARS} characters")
        # Extract once and expand per purpose; the secret itself is not kept.
        self._root = HKDF.extract(hashes.SHA256(), _APPLICATION, secret.encode())
        self._cipher = AESGCM(self._subkey("seal"))
        self._fingerprint = self._subkey("fingerprint").hex()[:32]
        self._header = _VERSION + self._subkey("key id")[:_KEY_ID_BYTES]
        # One keyed HMAC per purpose, copied for each message: making it costs five times as much as a tag.
        self._keyed_mac = lru_cache(maxsize=_MAX_PURPOSES)(self._make_mac)

    def __repr__(self) -> str:
        """Show which key this is, not the key."""
        return f"Keyring({self._fingerprint})"

    def fingerprint(self) -> str:
        """Name this key without giving it away; two processes with the same secret say the same."""
        return self._fingerprint

    def seal(self, plaintext: bytes, *, place: str) -> bytes:
        """Encrypt `plaintext` so that it opens only at `place`.

        `place` names table, column and row, as in "account_keys.secret:<uuid>": a sealed value copied to another row
        does not open there.

        >>> ring = Keyring("an example secret of 32 characters or more")
        >>> ring.open(ring.seal(b"sk-1", place="t.c:1"), place="t.c:1")
        b'sk-1'
        """
        nonce = os.urandom(_NONCE_BYTES)
        return self._header + nonce + self._cipher.encrypt(nonce, plaintext, self._header + place.encode())

    def open(self, sealed: bytes, *, place: str) -> bytes:
        """Decrypt what `seal` made for the same `place`.

        Raises: Unsealable when it was sealed with another key, for another place, or altered since.
        """
        header, nonce = sealed[:_HEADER_BYTES], sealed[_HEADER_BYTES : _HEADER_BYTES + _NONCE_BYTES]
        if len(sealed) < _HEADER_BYTES + _NONCE_BYTES + _TAG_BYTES or header[:1] != _VERSION:
            raise Unsealable(f"{place} holds no sealed value")
        if header != self._header:
            raise Unsealable(f"{place} was sealed with another key")
        try:
            return self._cipher.decrypt(nonce, sealed[_HEADER_BYTES + _NONCE_BYTES :], header + place.encode())
        except InvalidTag:
            raise Unsealable(f"{place} was altered or belongs elsewhere") from None

    def mac(self, purpose: str, message: bytes) -> bytes:
        """Tag `message` with HMAC-SHA256 (32 bytes) under the subkey of `purpose`.

        Purposes are few and fixed in the code ("api key", "asset link"), never taken from a request.

        >>> ring = Keyring("an example secret of 32 characters or more")
        >>> ring.mac("a", b"text") == ring.mac("a", b"text"), ring.mac("a", b"text") == ring.mac("b", b"text")
        (True, False)
        """
        tag = self._keyed_mac(purpose).copy()
        tag.update(message)
        return tag.digest()

    def mac_matches(self, purpose: str, message: bytes, *, tag: bytes) -> bool:
        """Say whether `tag` is the tag of `message`, in constant time.

        >>> ring = Keyring("an example secret of 32 characters or more")
        >>> ring.mac_matches("a", b"text", tag=ring.mac("a", b"text")), ring.mac_matches("a", b"text", tag=b"")
        (True, False)
        """
        return hmac.compare_digest(self.mac(purpose, message), tag)

    def _make_mac(self, purpose: str) -> "hmac.HMAC":
        return hmac.new(self._subkey(f"mac/{purpose}"), digestmod=hashlib.sha256)

    def _subkey(self, label: str) -> bytes:
        return HKDFExpand(hashes.SHA256(), 32, label.encode()).derive(self._root)


def pack(data: bytes) -> bytes:
    """Shrink a body before it is sealed; a small one, or one that does not shrink, is kept as it is.

    >>> pack(b"short"), len(pack(b"a" * 10_000)) < 100
    (b'\\x00short', True)
    """
    if len(data) >= PACK_FROM_BYTES:
        deflated = zlib.compress(data, level=1)
        if len(deflated) < len(data):
            return _DEFLATED + deflated
    return _PLAIN + data


def unpack(packed: bytes, *, max_bytes: int = UNPACKED_MAX_BYTES) -> bytes:
    """Give back what `pack` was given, at most `max_bytes` of it.

    Raises: Unpackable when the bytes are damaged or would grow beyond `max_bytes`.

    >>> unpack(pack(b"a" * 10_000)) == b"a" * 10_000
    True
    """
    kind, rest = packed[:1], packed[1:]
    if kind == _PLAIN:
        if len(rest) > max_bytes:
            raise Unpackable(f"more than {max_bytes} bytes")
        return rest
    if kind != _DEFLATED:
        raise Unpackable("not packed by us")
    return _inflate(rest, max_bytes)


def _inflate(deflated: bytes, max_bytes: int) -> bytes:
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(deflated, max_bytes + 1)
    except zlib.error:
        raise Unpackable("damaged") from None
    if len(data) > max_bytes:
        raise Unpackable(f"more than {max_bytes} bytes")
    if not inflater.eof or inflater.unused_data:
        raise Unpackable("damaged")
    return data
