"""Measures how well and how fast a model draws: rows of pictures, comparisons, tuning, reports."""
