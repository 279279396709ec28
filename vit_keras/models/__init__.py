"""Backbones: functions that return a functional `keras.Model` with named outputs."""

from .deit import deit, deit3
from .preset import Preset
from .vit import vit

__all__ = ["Preset", "deit", "deit3", "vit"]
