"""The solvers, by the names people type."""

from fewstep.diffusion.solvers.base import Solver
from fewstep.diffusion.solvers.ddim import DDIM
from fewstep.diffusion.solvers.dpm_solver import DPMSolver2, DPMSolver3
from fewstep.diffusion.solvers.dpm_solver_pp import DPMSolverPP2M, DPMSolverPP2S, DPMSolverPP3M
from fewstep.diffusion.solvers.heun import Heun
from fewstep.diffusion.solvers.lcm import LCM
from fewstep.diffusion.solvers.tcd import TCD

SOLVERS: dict[str, Solver] = {
    "ddim": DDIM(),
    "euler": DDIM(),  # the same step (see DDIM), by the name it has elsewhere
    "dpm-solver-1": DDIM(),  # likewise
    "dpm-solver": DPMSolver2(),
    "dpm-solver-3": DPMSolver3(),
    "dpm-solver++": DPMSolverPP2M(),
    "dpm-solver++2s": DPMSolverPP2S(),
    "dpm-solver++3m": DPMSolverPP3M(),
    "heun": Heun(),
    "euler-a": DDIM(eta=1.0),
    "lcm": LCM(),
    "tcd": TCD(),
}

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
]
