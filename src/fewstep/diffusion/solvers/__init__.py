"""The solvers, by the names people type."""

from fewstep.diffusion.solvers.base import Solver
from fewstep.diffusion.solvers.ddim import DDIM
from fewstep.diffusion.solvers.dpm_solver import DPMSolver2
from fewstep.diffusion.solvers.dpm_solver_pp import DPMSolverPP2M, DPMSolverPP2S
from fewstep.diffusion.solvers.lcm import LCM

SOLVERS: dict[str, Solver] = {
    "ddim": DDIM(),
    "dpm-solver": DPMSolver2(),
    "dpm-solver++": DPMSolverPP2M(),
    "dpm-solver++2s": DPMSolverPP2S(),
    "lcm": LCM(),
}

__all__ = ["DDIM", "LCM", "SOLVERS", "DPMSolver2", "DPMSolverPP2M", "DPMSolverPP2S", "Solver"]
