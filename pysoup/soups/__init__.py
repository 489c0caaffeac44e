"""The recipes: one file each."""

from __future__ import annotations

from .ensemble import Ensemble, logit_ensemble
from .ensemble_selection import greedy_ensemble
from .greedier import greedier_soup
from .greedy import greedy_soup
from .interpolation import Interpolation, InterpolationPoint, interpolate
from .learned import LearnedEpoch, LearnedSoup, learned_soup
from .logit_cache import LogitCache
from .orders import OrderStatistics, random_orders
from .pruned import pruned_soup
from .soup import GreedyStep, Soup
from .stock import StockSoup, model_stock
from .trajectory import TrajectorySoup, trajectory_soup
from .uniform import uniform_soup

__all__ = [
    "Ensemble",
    "GreedyStep",
    "Interpolation",
    "InterpolationPoint",
    "LearnedEpoch",
    "LearnedSoup",
    "LogitCache",
    "OrderStatistics",
    "Soup",
    "StockSoup",
    "TrajectorySoup",
    "greedier_soup",
    "greedy_ensemble",
    "greedy_soup",
    "interpolate",
    "learned_soup",
    "logit_ensemble",
    "model_stock",
    "pruned_soup",
    "random_orders",
    "trajectory_soup",
    "uniform_soup",
]
