"""Model soups: average the weights of fine-tuned models, exactly, in bounded memory, at the speed of memory and disk.

Wortsman et al., "Model soups", ICML 2022 (arXiv 2203.05482). Names are loaded at first use, so importing pysoup costs
nothing and needs no torch; the functions that work on live models do.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .adapters import AdapterReport as AdapterReport
    from .adapters import average_adapters as average_adapters
    from .average import AverageReport as AverageReport
    from .average import average_checkpoints as average_checkpoints
    from .averager import Averager as Averager
    from .checkpoint import Checkpoint as Checkpoint
    from .checkpoint import open_checkpoint as open_checkpoint
    from .errors import BackendError as BackendError
    from .errors import CheckpointError as CheckpointError
    from .errors import IncompatibleError as IncompatibleError
    from .errors import OutputError as OutputError
    from .errors import SoupError as SoupError
    from .errors import WeightsError as WeightsError
    from .evaluate import HeldOut as HeldOut
    from .evaluate import Metric as Metric
    from .evaluate import heldout_split as heldout_split
    from .evaluate import recalibrate_batchnorm as recalibrate_batchnorm
    from .finetune import Sweep as Sweep
    from .load import load_soup_ as load_soup_
    from .logits import LogitScores as LogitScores
    from .logits import score_ensemble as score_ensemble
    from .logits import score_logits as score_logits
    from .soups import Ensemble as Ensemble
    from .soups import Soup as Soup
    from .soups import greedier_soup as greedier_soup
    from .soups import greedy_ensemble as greedy_ensemble
    from .soups import greedy_soup as greedy_soup
    from .soups import interpolate as interpolate
    from .soups import learned_soup as learned_soup
    from .soups import logit_ensemble as logit_ensemble
    from .soups import model_stock as model_stock
    from .soups import pruned_soup as pruned_soup
    from .soups import trajectory_soup as trajectory_soup
    from .soups import uniform_soup as uniform_soup
    from .state_dicts import average_state_dicts as average_state_dicts
    from .stock import stock_checkpoints as stock_checkpoints
    from .trajectory import trajectory_weights as trajectory_weights

_HOME = {
    "AdapterReport": "adapters",
    "AverageReport": "average",
    "Averager": "averager",
    "BackendError": "errors",
    "Checkpoint": "checkpoint",
    "CheckpointError": "errors",
    "Ensemble": "soups",
    "HeldOut": "evaluate",
    "IncompatibleError": "errors",
    "LogitScores": "logits",
    "Metric": "evaluate",
    "OutputError": "errors",
    "Soup": "soups",
    "SoupError": "errors",
    "Sweep": "finetune",
    "WeightsError": "errors",
    "average_adapters": "adapters",
    "average_checkpoints": "average",
    "average_state_dicts": "state_dicts",
    "greedier_soup": "soups",
    "greedy_ensemble": "soups",
    "greedy_soup": "soups",
    "heldout_split": "evaluate",
    "interpolate": "soups",
    "learned_soup": "soups",
    "load_soup_": "load",
    "logit_ensemble": "soups",
    "model_stock": "soups",
    "open_checkpoint": "checkpoint",
    "pruned_soup": "soups",
    "recalibrate_batchnorm": "evaluate",
    "score_ensemble": "logits",
    "score_logits": "logits",
    "stock_checkpoints": "stock",
    "trajectory_soup": "soups",
    "trajectory_weights": "trajectory",
    "uniform_soup": "soups",
}

__all__ = ["__version__", *_HOME]  # noqa: PLE0604 (the keys are strings)


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'pysoup' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f".{home}", __name__), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        what = f"pysoup.{name} needs torch: pip install 'model-soups[torch]' (in a checkout: '.[torch]')"
        raise ModuleNotFoundError(what, name="torch") from None


def __dir__() -> list[str]:
    return sorted(__all__)
