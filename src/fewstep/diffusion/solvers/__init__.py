"""The solvers by the names that people type. Each file in this folder is found without being listed.

A file names its solvers in a dict SOLVERS. That is enough: --solver, plans, the rows of comparisons and the diffusers
scheduler then know them.
"""

from importlib import import_module
from pkgutil import iter_modules

from fewstep.diffusion.solvers.base import Solver, run_step
from fewstep.diffusion.solvers.ddim import DDIM
from fewstep.diffusion.solvers.dpm_solver import DPMSolver2, DPMSolver3
from fewstep.diffusion.solvers.dpm_solver_pp import DPMSolverPP2M, DPMSolverPP2S, DPMSolverPP3M
from fewstep.diffusion.solvers.heun import Heun
from fewstep.diffusion.solvers.lcm import LCM
from fewstep.diffusion.solvers.tcd import TCD


def _solvers() -> dict[str, Solver]:
    files = [import_module(f"{__name__}.{file.name}") for file in iter_modules(__path__)]
    return {name: solver for file in files for name, solver in getattr(file, "SOLVERS", {}).items()}


SOLVERS = _solvers()

__all__ = [
    "DDIM",
    "LCM",
    "SOLVERS",
    "TCD",
    "DPMSolver2",
    "DPMSolver3",
    "DPMSolverPP2M",
    "DPMSolverPP2S",
    "DPMSolverPP3M",
    "Heun",
    "Solver",
    "run_step",
]
