"""Hyperparameter search on Ray Tune and Optuna; the only package that imports Ray."""

import optuna

# Optuna logs every study and trial; the display shows what a user needs.
optuna.logging.set_verbosity(optuna.logging.WARNING)
