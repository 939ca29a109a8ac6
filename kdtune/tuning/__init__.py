"""Many trials. Ray is imported in this room and nowhere else, search-space modules aside."""

import optuna

# Optuna announces every study and trial; what a person should see, `display` says.
optuna.logging.set_verbosity(optuna.logging.WARNING)
