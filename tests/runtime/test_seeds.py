"""Derived seeds: the same everywhere, different for every purpose."""

from kdtune.runtime.seeds import derive_seed


def test_a_seed_is_the_same_in_every_version():
    assert derive_seed(0, "epoch", 1) == 28809463


def test_names_and_seeds_give_different_seeds():
    seeds = {derive_seed(s, name, n) for s in range(5) for name in "ab" for n in range(20)}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**31 for seed in seeds)
