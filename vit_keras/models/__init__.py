"""Backbones: functions that return a functional `keras.Model` with named outputs."""

from .preset import Preset
from .vit import vit

__all__ = ["Preset", "vit"]
