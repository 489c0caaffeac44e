"""The recipes: one file each."""

from __future__ import annotations

from .ensemble import Ensemble, logit_ensemble
from .ensemble_selection import greedy_ensemble
from .greedier import greedier_soup
from .greedy import greedy_soup
from .logit_cache import LogitCache
from .orders import OrderStatistics, random_orders
from .pruned import pruned_soup
from .soup import GreedyStep, Soup
from .uniform import uniform_soup

__all__ = [
    "Ensemble",
    "GreedyStep",
    "LogitCache",
    "OrderStatistics",
    "Soup",
    "greedier_soup",
    "greedy_ensemble",
    "greedy_soup",
    "logit_ensemble",
    "pruned_soup",
    "random_orders",
    "uniform_soup",
]
