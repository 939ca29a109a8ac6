"""Search spaces, one module per method, with the sources of their ranges.

A module has `METHOD` (a name in `kdtune.methods.METHODS`), `SPACE` and `START`. `SPACE` maps
settings of a run to Ray Tune domains or constants; it can also be a function ``SPACE(trial)`` in
Optuna's define-by-run form. `START` lists known good points, which are tried first. To change a
space, copy its module, edit it, and pass its path to ``kdtune sweep --space``.

`alpha_strength` and `beta_strength` are in place of `alpha` and `beta`: the weighted term over the
classification loss, both of the untrained student. The weights follow from them.
"""
