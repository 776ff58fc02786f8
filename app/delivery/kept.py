"""Kept answers: what was told of a task within the last second, for whoever asks again (lib/signals.py keeps them).

Redis is not ours alone to write in. What comes out of it is told to a team only with our tag on it, made for that team
and task within the last moments: a neighbour who writes there can take an answer away, never put one in its place.
"""

from datetime import timedelta

from app.resources import Resources

MAC_PURPOSE = "kept answer"
TAG_BYTES, STAMP_BYTES = 32, 8
LIFE = timedelta(seconds=3)  # a second, and two for clocks that differ


async def find_kept(res: Resources, key: str) -> bytes | None:
    """Return what was kept for a key a moment ago, or None. Redis away: what this process kept."""
    kept = await res.signals.find_status(key)
    if kept is None:
        return None
    tag, stamp, answer = kept[:TAG_BYTES], kept[TAG_BYTES : TAG_BYTES + STAMP_BYTES], kept[TAG_BYTES + STAMP_BYTES :]
    if not res.keyring.mac_matches(MAC_PURPOSE, _message(key, stamp=stamp, answer=answer), tag=tag):
        return None
    age_ms = _milliseconds(res) - int.from_bytes(stamp)
    return answer if abs(age_ms) <= LIFE / timedelta(milliseconds=1) else None


async def keep(res: Resources, key: str, answer: bytes) -> None:
    """Keep an answer for one second. Redis away: in this process."""
    stamp = _milliseconds(res).to_bytes(STAMP_BYTES)
    tag = res.keyring.mac(MAC_PURPOSE, _message(key, stamp=stamp, answer=answer))
    await res.signals.put_status(key, tag + stamp + answer)


def _message(key: str, *, stamp: bytes, answer: bytes) -> bytes:
    return b"%d|%b%b%b" % (len(key), key.encode(), stamp, answer)


def _milliseconds(res: Resources) -> int:
    return int(res.clock.now().timestamp() * 1000)
