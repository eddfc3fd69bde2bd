"""Data sets as uint8 (N, C, H, W): one class per kind of source, one common cache format."""

from backdoor_lab.data.base import Arrays, Source, Split
from backdoor_lab.data.cache import open_dataset, overlap

__all__ = ["Arrays", "Source", "Split", "open_dataset", "overlap"]
