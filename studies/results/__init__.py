"""LCM-LoRA beside the solvers it replaces, measured: docs/results.md, by `python -m studies.results`.

Everything goes through `compare`. Pictures, and what is measured of them, are kept under $FEWSTEP_CACHE, so
an interrupted run goes on where it was. What a run leaves out (--pieces) stays on the page as it was measured before.
"""

from studies.results import config, jobs, page, pictures, pieces, run, verdicts

__all__ = ["config", "jobs", "page", "pictures", "pieces", "run", "verdicts"]
