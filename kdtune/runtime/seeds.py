"""Seeds that are derived from the seed of a sweep or run, by purpose."""

import hashlib


def derive_seed(seed: int, *purpose: object) -> int:
    """Derive an independent seed in [0, 2³¹), the same on every machine, for a named purpose.

    Args:
        seed: the user's seed.
        purpose: use of the derived seed, e.g. ``"epoch", 3``.
    """
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
