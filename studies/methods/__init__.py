"""Write docs/methods.md: what each method of distillation gives from equal training, on the embedded model.

`python -m studies.methods` trains what is not trained yet, draws, measures and writes the page.
"""

from studies.methods import config, measures, page, run, students

__all__ = ["config", "measures", "page", "run", "students"]
