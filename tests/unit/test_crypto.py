"""What is sealed opens only here, and nothing unpacks to more than allowed."""

import doctest

import pytest

from app.lib import crypto

SECRET = "a secret for tests, of more than 32 characters"
PLACE = "account_keys.secret:0190"


def test_the_examples_in_the_module_are_true() -> None:
    assert doctest.testmod(crypto).failed == 0


def test_a_sealed_value_opens_at_its_place() -> None:
    assert crypto.Keyring(SECRET).open(crypto.Keyring(SECRET).seal(b"sk-1", place=PLACE), place=PLACE) == b"sk-1"


def test_a_sealed_value_does_not_open_at_another_place() -> None:
    ring = crypto.Keyring(SECRET)
    with pytest.raises(crypto.Unsealable):
        ring.open(ring.seal(b"sk-1", place=PLACE), place="account_keys.secret:0191")


def test_another_key_says_that_it_is_another_key() -> None:
    sealed = crypto.Keyring(SECRET).seal(b"sk-1", place=PLACE)
    with pytest.raises(crypto.Unsealable, match="another key"):
        crypto.Keyring(SECRET + "!").open(sealed, place=PLACE)


def test_every_altered_byte_is_noticed() -> None:
    ring = crypto.Keyring(SECRET)
    sealed = ring.seal(b"sk-1", place=PLACE)
    for position in range(len(sealed)):
        altered = bytearray(sealed)
        altered[position] ^= 1
        with pytest.raises(crypto.Unsealable):
            ring.open(bytes(altered), place=PLACE)


@pytest.mark.parametrize("length", range(33))
def test_a_cut_value_is_unsealable_and_not_a_crash(length: int) -> None:
    ring = crypto.Keyring(SECRET)
    with pytest.raises(crypto.Unsealable):
        ring.open(ring.seal(b"", place=PLACE)[:length], place=PLACE)


def test_sealing_twice_gives_two_different_values() -> None:
    ring = crypto.Keyring(SECRET)
    assert ring.seal(b"sk-1", place=PLACE) != ring.seal(b"sk-1", place=PLACE)


def test_purposes_have_different_tags_and_a_tag_is_stable() -> None:
    one, same = crypto.Keyring(SECRET), crypto.Keyring(SECRET)
    assert one.mac("api key", b"m") == same.mac("api key", b"m")
    assert len({one.mac("api key", b"m"), one.mac("asset link", b"m"), one.mac("api key", b"n")}) == 3


def test_a_wrong_tag_does_not_match() -> None:
    ring = crypto.Keyring(SECRET)
    assert ring.mac_matches("api key", b"m", tag=ring.mac("api key", b"m"))
    assert not ring.mac_matches("api key", b"m", tag=ring.mac("asset link", b"m"))


def test_the_fingerprint_names_the_key_and_is_none_of_its_subkeys() -> None:
    ring = crypto.Keyring(SECRET)
    assert ring.fingerprint() == crypto.Keyring(SECRET).fingerprint() != crypto.Keyring(SECRET + "!").fingerprint()
    assert ring.fingerprint() not in ring.seal(b"", place=PLACE).hex()


def test_the_key_material_is_pinned_so_that_an_upgrade_cannot_change_it() -> None:
    ring = crypto.Keyring("0123456789abcdef0123456789abcdef")
    sealed = bytes.fromhex("01193c3abb72737ee4f6d4979622ddf36e8bfa4f476055f9ea7cca91be1fbab743bd565b80")
    assert ring.fingerprint() == "41185018ca7b6d5e9350668506d0cc68"
    assert ring.mac("api key", b"m").hex() == "cf590ba6eb04285a19f495e7f557ab32cb98cffc39b2de11c9c2564dafdff68e"
    assert ring.open(sealed, place=PLACE) == b"sk-1"


def test_a_keyring_does_not_show_its_secret() -> None:
    assert SECRET not in repr(crypto.Keyring(SECRET))


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(crypto.WeakSecret):
        crypto.Keyring("x" * 31)


@pytest.mark.parametrize("data", [b"", b"short", b"a" * 199, b"a" * 200, b"a" * 100_000, bytes(range(256)) * 4])
def test_what_is_packed_unpacks(data: bytes) -> None:
    assert crypto.unpack(crypto.pack(data)) == data


def test_small_bodies_stay_as_they_are_and_large_ones_shrink() -> None:
    assert crypto.pack(b"a" * 199) == b"\x00" + b"a" * 199
    assert len(crypto.pack(b"a" * 100_000)) < 1_000


def test_a_bomb_stops_at_the_limit() -> None:
    with pytest.raises(crypto.Unpackable, match="more than"):
        crypto.unpack(crypto.pack(b"a" * 1_000_001), max_bytes=1_000_000)
    assert len(crypto.unpack(crypto.pack(b"a" * 1_000_000), max_bytes=1_000_000)) == 1_000_000


@pytest.mark.parametrize(
    "packed", [b"", b"\x02x", b"\x01", b"\x01junk", crypto.pack(b"a" * 999)[:-1], crypto.pack(b"a" * 999) + b"x"]
)
def test_damaged_bytes_are_unpackable(packed: bytes) -> None:
    with pytest.raises(crypto.Unpackable):
        crypto.unpack(packed)
