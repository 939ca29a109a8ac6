"""Search spaces, one module a method: which settings are searched, where, and why there.

A module has `METHOD` (a name in `kdtune.methods.METHODS`), `SPACE` and `START`. `SPACE` maps
settings of a run to Ray Tune domains, or to constants; it can also be a function ``space(trial)``
in Optuna's define-by-run form. `START` holds known good points, which are tried first. Copy a
module, edit it, and pass its path to ``kdtune sweep --space``.
"""
