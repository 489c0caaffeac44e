"""The recipes: one file each."""

from __future__ import annotations

from .greedy import greedy_soup
from .soup import GreedyStep, Soup
from .uniform import uniform_soup

__all__ = ["GreedyStep", "Soup", "greedy_soup", "uniform_soup"]
