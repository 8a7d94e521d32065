"""What choices in a distillation are worth on a small model: docs/ablations.md, by `python -m studies.ablations`.

Trainings are kept under $FEWSTEP_CACHE/ablations and pictures as compare keeps its own: an interrupted command goes on.
"""

from studies.ablations import arms, measures, page, run, runs

__all__ = ["arms", "measures", "page", "run", "runs"]
