"""Six limits of LCM-LoRA measured on the embedded model: docs/limits.md, by `python -m studies.limits`.

A run of some sections leaves the others as they are. Pictures are kept under $FEWSTEP_CACHE as compare keeps its own,
so an interrupted run goes on where it was.
"""

from studies.limits import bench, general, inputs, page, pretrained, rank, run, smooth, speed, words

__all__ = ["bench", "general", "inputs", "page", "pretrained", "rank", "run", "smooth", "speed", "words"]
