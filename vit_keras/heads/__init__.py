"""Heads: what turns a backbone into a task."""

from .classification import classifier

__all__ = ["classifier"]
