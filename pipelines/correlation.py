"""How alike two maps are in where they are high and where low."""

import numpy as np
from scipy.stats import spearmanr


def rank_correlations(maps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns Spearman's rank correlation of each of two rows of maps.

    Args:
        maps: `(n, h, w)`.
        others: Of the same shape.

    Returns:
        `(n,)`, -1 to 1: 1 where both have their places in the same order; 0 where one of them is the same everywhere.
    """
    pairs = zip(maps.reshape(len(maps), -1), others.reshape(len(others), -1), strict=True)
    return np.array([spearmanr(a, b).statistic if np.ptp(a) and np.ptp(b) else 0.0 for a, b in pairs])
