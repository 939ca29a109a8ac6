"""Hyperparameter search on Ray Tune and Optuna; the only package that imports Ray."""
