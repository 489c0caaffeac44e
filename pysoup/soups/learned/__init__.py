"""The learned soup: mixing weights by gradient descent on the held-out data (paper, appendix I)."""

from __future__ import annotations

from .recipe import learned_soup
from .result import LearnedEpoch, LearnedSoup

__all__ = ["LearnedEpoch", "LearnedSoup", "learned_soup"]
