"""Published checkpoints in, ours out: every tensor accounted for, nothing unpickled."""

from .load import LoadReport, load
from .resample import resample_grid, resample_patches, resize
from .save import save_timm
from .source import fetch

__all__ = ["LoadReport", "fetch", "load", "resample_grid", "resample_patches", "resize", "save_timm"]
