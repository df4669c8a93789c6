"""Small real tasks: data, a training loop written once, and measurements, for any model.

>>> from workingpapers.data import images
>>> from workingpapers.tasks import fit, initialise, mlp
>>> model = initialise(lambda: mlp([64, 32, 10]), seed=0)
>>> fit(model, images("digits"), epochs=10).metrics["accuracy"] > 0.9
True
"""

from workingpapers.tasks.budget import FULL, QUICK, Budget, budget
from workingpapers.tasks.examples import Example
from workingpapers.tasks.forecasting import Forecasting
from workingpapers.tasks.graphs import GCN, NodeClassification, normalised_adjacency
from workingpapers.tasks.language import LanguageModelling
from workingpapers.tasks.models import cnn, mlp, residual_cnn
from workingpapers.tasks.problems import Classification, Problem, Regression
from workingpapers.tasks.randomness import initialise
from workingpapers.tasks.table import TASKS, Task, task
from workingpapers.tasks.training import Result, fit
from workingpapers.tasks.transformers import char_gpt, vit

__all__ = [
    "FULL",
    "GCN",
    "QUICK",
    "TASKS",
    "Budget",
    "Classification",
    "Example",
    "Forecasting",
    "LanguageModelling",
    "NodeClassification",
    "Problem",
    "Regression",
    "Result",
    "Task",
    "budget",
    "char_gpt",
    "cnn",
    "fit",
    "initialise",
    "mlp",
    "normalised_adjacency",
    "residual_cnn",
    "task",
    "vit",
]
