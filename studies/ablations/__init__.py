"""What each choice in a distillation is worth on a small model: docs/ablations.md, by `python -m studies.ablations`.

Runs are kept under $FEWSTEP_CACHE/ablations and pictures as compare keeps its own: an interrupted command goes on.
"""

from studies.ablations import groups, measures, page, run, runs

__all__ = ["groups", "measures", "page", "run", "runs"]
