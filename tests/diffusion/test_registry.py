"""A solver is one file: whatever lists solvers takes it from there, and whatever treats them apart from their facts."""

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import fewstep
from fewstep.configs import Grid, SampleConfig
from fewstep.configs.base import solver_names
from fewstep.configs.training import DistillConfig
from fewstep.diffusion.solvers import SOLVERS
from fewstep.session.plan import GRIDS, TRAINING_GRIDS

PACKAGE = Path(fewstep.__file__).parent
SOLVER_FILES = Path("diffusion", "solvers")

TOY = '''
"""A toy: half of Euler's step, then half of the next, for distilled networks, never from pure noise."""

from typing import ClassVar

from fewstep.diffusion.prediction import eps_from_x_0
from fewstep.diffusion.solvers.base import Ask, Midpoint, Solver


class Toy(Midpoint):
    calls: ClassVar[int] = 2
    order: ClassVar[int] = 1
    distilled_only: ClassVar[bool] = True
    divides_by_alpha: ClassVar[bool] = True

    def step(self, x_s, levels, state, noise):
        x = x_s
        for s, t in zip(levels[:-1], levels[1:], strict=True):
            x_0 = yield Ask(x, s)
            x = t.alpha * x_0 + t.sigma * eps_from_x_0(x_0, x, s)
        return x, None


SOLVERS: dict[str, Solver] = {"toy": Toy()}
'''

USES = """
import sys
from fewstep.cli import main
main(["sample", "--help"])
assert "torch" not in sys.modules
import torch
import fewstep
from fewstep.configs import SampleConfig, build
from fewstep.diffusion.schedule import schedule_from_config
from fewstep.evaluate.rows import parse_row
from fewstep.session.plan import plan_sampling, psi_named, refuse_zero_snr
from fewstep.bridge.scheduler import FewstepScheduler

schedule = schedule_from_config({})
plan = plan_sampling(schedule, [], build(SampleConfig, prompts=("a",), solver="toy").solver, 4)
assert (plan.grid, plan.steps, len(plan.timesteps), plan.consistency) == ("lcm", 4, 2, False)
assert plan.notes == ("the toy solver needs an acceleration LoRA or a distilled model; without one, pictures blur",)
assert parse_row("toy:4").solver == "toy"
assert psi_named("toy").calls == 2
for what, say in ((lambda: parse_row("toy:3"), "2 network calls a step"),
                  (lambda: refuse_zero_snr("toy", schedule_from_config({"rescale_betas_zero_snr": True})), "by alpha")):
    try:
        what()
    except fewstep.errors.UsageError as error:
        assert say in str(error)
    else:
        raise AssertionError(say)
scheduler, euler = (FewstepScheduler(solver=name, prediction_type="sample") for name in ("toy", "euler"))
scheduler.set_timesteps(4)
assert scheduler.grid == "lcm" and len(scheduler.timesteps) == 4
x = torch.randn(1, 4, 2, 2)
for t in scheduler.timesteps:
    x = scheduler.step(torch.ones_like(x), t, x).prev_sample
assert torch.equal(x, torch.ones_like(x))
"""


def test_a_solver_is_one_file(tmp_path):
    """In a copy of the package with one file more."""
    copy = tmp_path / "fewstep"
    for folder in (Path(), *(parent for parent in reversed(SOLVER_FILES.parents) if parent.name), SOLVER_FILES):
        (copy / folder).mkdir()
        for entry in (PACKAGE / folder).iterdir():
            if entry.name != "__pycache__" and not SOLVER_FILES.is_relative_to(folder / entry.name):
                (copy / folder / entry.name).symlink_to(entry)
    (copy / SOLVER_FILES / "toy.py").write_text(TOY, encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", USES], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "toy" in re.findall(r"[\w+-]+", done.stdout)  # among the choices of --solver


def test_names_in_configs_are_those_of_the_registry():
    """The command line's choices are read from the solvers' files, so that --help imports no torch."""
    assert list(solver_names()) == list(SOLVERS)
    assert get_args(SampleConfig.model_fields["solver"].annotation) == ("auto", *SOLVERS)
    distilled = {name for name, solver in SOLVERS.items() if solver.distilled_only}
    assert set(get_args(DistillConfig.model_fields["sampler"].annotation)) == {"auto", *distilled}
    assert get_args(Grid) == ("auto", *TRAINING_GRIDS, *GRIDS)


def test_no_name_is_taken_twice():
    assert len(list(solver_names())) == len(set(solver_names()))
