"""Reads data sets as uint8 (N, C, H, W). There is one Python class per kind of source; all share a
common cache format."""

from backdoor_lab.data.base import Arrays, Source, Split
from backdoor_lab.data.cache import open_dataset, overlap

__all__ = ["Arrays", "Source", "Split", "open_dataset", "overlap"]
