"""Search spaces, one module per method, with the sources of their ranges.

A module has `METHOD` (a name in `kdtune.methods.METHODS`), `SPACE` and `START`. `SPACE` maps
settings of a run to Ray Tune domains or constants; it can also be a function ``SPACE(trial)`` in
Optuna's define-by-run form. `START` lists known good points, which are tried first. To change a
space, copy its module, edit it, and pass its path to ``kdtune sweep --space``.
"""
