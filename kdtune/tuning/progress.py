"""What a person sees while a sweep runs: one line on stderr for every trial that ends."""

import sys

from kdtune.results import Event


class Progress:
    """Prints the ends of trials, with the cell's best so far; a fold over the log.

    Args:
        total: trials of the whole sweep.
    """

    def __init__(self, total: int):
        self.total, self.ended = total, 0
        self._best: dict[str, float] = {}

    def fold(self, event: Event) -> None:
        """Take an event of the log; print if it is the end of a trial."""
        if event["event"] != "ended":
            return
        self.ended += 1
        cell = f"{event['method']}-{event['model']}"
        accuracy = event["best_validation_accuracy"]
        figures = ""
        if accuracy is not None:
            self._best[cell] = max(self._best.get(cell, 0.0), accuracy)
            figures = f" {100 * accuracy:.2f} % (cell's best {100 * self._best[cell]:.2f} %)"
        print(
            f"[{self.ended}/{self.total}] {event['trial_id']} {event['state']}{figures}: "
            f"{event['reason']}",
            file=sys.stderr,
            flush=True,
        )
