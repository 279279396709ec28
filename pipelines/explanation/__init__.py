"""Explaining a classifier, a Keras model or an exported file: maps, figures, comparisons and probes."""
