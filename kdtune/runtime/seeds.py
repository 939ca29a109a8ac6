"""One seed fixes everything: every other seed is derived from it by name."""

import hashlib


def derive_seed(seed: int, *purpose: object) -> int:
    """Derive an independent seed for a named purpose.

    Args:
        seed: the seed that the user chose.
        names: what the derived seed is for, e.g. ``"epoch", 3``.

    Returns:
        An integer in [0, 2³¹), the same on every machine and in every process.
    """
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
