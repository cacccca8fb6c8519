"""The tasks of fine-tuning, by the name that --task gives them."""

from esm2_hyperpod.localization.regression import Regression
from esm2_hyperpod.localization.residues import Residues
from esm2_hyperpod.localization.settings import Settings
from esm2_hyperpod.localization.task import Places

TASKS: dict[str, Places] = {"localization": Places(), "residue": Residues(), "regression": Regression()}


def task_of(settings: Settings) -> Places:
    """What a model with these settings does."""
    return TASKS[settings.task]
