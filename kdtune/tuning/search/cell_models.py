"""The models of all cells, each a prior mean for the others."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from optuna import Study
from optuna.trial import TrialState

from kdtune.log.events import Cell
from kdtune.tuning.search.cell_model import MIN_TRIALS, CellModel
from kdtune.tuning.search.space import SearchSpace


@dataclass
class CellModels:
    """Models of the completed trials of studies; none of a space that is a function."""

    studies: Mapping[Cell, Study]
    spaces: Mapping[str, SearchSpace]
    earlier: list[CellModel] = field(default_factory=list)  # of cells of other sweeps
    _models: dict[Cell, tuple[int, CellModel]] = field(default_factory=dict)

    def find(self, cell: Cell) -> CellModel | None:
        """Return the model of a cell by its own trials alone."""
        space = self.spaces[cell[0]]
        searched = {name: d for name, d in space.distributions.items() if not d.single()}
        if space.define_by_run is not None or not searched:
            return None
        completed = self.studies[cell].get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if cell not in self._models or self._models[cell][0] != len(completed):
            self._models[cell] = len(completed), CellModel(completed, searched)
        return self._models[cell][1]

    def sources(self, cell: Cell) -> list[CellModel]:
        """Return the models that teach a cell."""
        models = (self.find(other) for other in self.studies if other != cell)
        return [*self.earlier, *(model for model in models if model is not None)]

    def with_prior_mean(self, cell: Cell) -> CellModel | None:
        """Return the model of a cell with those of the others as prior mean, if it has trials."""
        if (model := self.find(cell)) is None or len(model.trials) < MIN_TRIALS:
            return None
        return CellModel(model.trials, model.space, self.sources(cell))
