"""The ablations: groups of training runs that differ in one choice."""

from typing import Any, NamedTuple

from fewstep.diffusion.schedule import skipping_grid

BASE: dict[str, Any] = {
    "rank": 16,
    "guidance_scale": 4.0,
    "psi": "ddim",
    "k": 20,
    "target": "ema",
    "target_decay": 0.95,
    "loss": "huber",
    "huber_c": 0.001,
    "learning_rate": 1e-3,
    "decay": "cosine",
    "ema": 0.98,
    "seed": 0,
}
NEVER_MOVES = 1 - 1e-12  # decay of an average that stays the network it began as: the one without a LoRA


class Group(NamedTuple):
    """Runs that differ in one choice."""

    title: str
    text: str  # what is chosen between
    runs: dict[str, dict[str, Any]]  # name: what differs from the base run, which comes first
    also: tuple[int, ...] = ()  # steps of the sampler beside STEPS
    pairs: tuple[tuple[str, str], ...] = ()  # runs to compare beside the base: this one to that one


WIDTHS: dict[str, dict[str, Any]] = {f"Huber, c = {c:g}": {"huber_c": c} for c in (0.01, 0.1)}
RANKS: dict[str, dict[str, Any]] = {f"rank {rank}": {"rank": rank} for rank in (1, 4, 8, 32, 64)}
RATES, TARGETS = (3e-4, 1e-4), {"EMA 0.95": "ema", "student": "student"}
SLOWER: dict[str, dict[str, Any]] = {
    f"{name}, rate {rate:g}": {"target": target, "learning_rate": rate}
    for rate in RATES
    for name, target in TARGETS.items()
}
GRIDS = {k: f"k = {k}: {len(skipping_grid(k))} timesteps" for k in (20, 5, 10, 50, 100)}
GROUPS = {
    "guidance": Group(
        "Guidance",
        "One guidance scale for all samples, or one drawn for each without telling the student, as the published"
        " training script does: its w of 5 to 15 is a scale of 6 to 16. A wide range has another mean, so a fixed"
        " scale of that mean stands beside it.",
        {
            "4, fixed": {},
            "1.25, fixed": {"guidance_scale": 1.25},
            "2, fixed": {"guidance_scale": 2.0},
            "8, fixed": {"guidance_scale": 8.0},
            "2 to 6, drawn": {"guidance_scale": 2.0, "guidance_scale_max": 6.0},
            "11, fixed": {"guidance_scale": 11.0},
            "6 to 16, drawn": {"guidance_scale": 6.0, "guidance_scale_max": 16.0},
        },
        pairs=(("6 to 16, drawn", "11, fixed"),),
    ),
    "target": Group(
        "Target",
        "Whose consistency function is aimed at: that of an average of the student's weights, of the student"
        " itself with the gradient stopped (online), or of the teacher, which is no consistency distillation,"
        " though one trainer does it: without guidance, and blurred, since the teacher's estimate is a mean. A"
        " target that moves with every step bears less of a learning rate than the base's 1e-3, so that it and the"
        " average stand beside each other at smaller ones too.",
        {
            "EMA 0.95": {},
            "EMA 0.99": {"target_decay": 0.99},
            "teacher": {"target_decay": NEVER_MOVES},
            "student": {"target": "student"},
            **SLOWER,
        },
        also=(1, 2, 8),
        pairs=tuple((f"student, rate {rate:g}", f"EMA 0.95, rate {rate:g}") for rate in RATES),
    ),
    "loss": Group(
        "Loss",
        "Pseudo-Huber's width c, elementwise, from nearly |d| to nearly the squared error, and that itself.",
        {"Huber, c = 0.001": {}} | WIDTHS | {"L2": {"loss": "l2"}},
        also=(1, 2, 8),
    ),
    "psi": Group(
        "Psi",
        "The solver that steps the teacher from s to t: of first order, second (DPM-Solver, DPM-Solver++(2S),"
        " Heun: two calls of the teacher), and third (three).",
        {"ddim": {}} | {psi: {"psi": psi} for psi in ("dpm-solver", "dpm-solver++", "heun", "dpm-solver-3")},
    ),
    "k": Group(
        "The skipping step",
        "Timesteps that the teacher's solver skips. The student is trained at every k-th timestep only, and"
        " sampled at some of these.",
        {name: {} if k == BASE["k"] else {"k": k} for k, name in GRIDS.items()},
    ),
    "focus": Group(
        "Timesteps",
        "The share of samples whose timestep is one that 1, 2, 4 or 8 steps of sampling begin at (`--focus`); the"
        " others are spread over the whole grid, which the base run's all are.",
        {"0, the whole grid": {}} | {f"{share:g}": {"focus": share} for share in (0.25, 0.5, 0.75, 1.0)},
        also=(1, 2, 8),
    ),
    "weighting": Group(
        "Weighting",
        "Of the samples' distances: all alike, or inverse to how much noise a step of k takes away, so that the"
        " last steps weigh more.",
        {"uniform": {}, "inverse to the step": {"weighting": "inverse-step"}},
        also=(1, 2, 8),
    ),
    "grid": Group(
        "The grid of sampling",
        "The same student, sampled at timesteps spread evenly, as LCM's sampler does, or denser at the end. The"
        " first is the noisiest in both, so one step is the same.",
        {"even": {}, "quadratic": {"grid": "quadratic"}},
        also=(2, 8),
    ),
    "method": Group(
        "Method",
        "Consistency distillation, whose jumps all end at the lowest level, or trajectory consistency distillation,"
        " whose jumps end anywhere (TCD), sampled with its own solver, which adds less noise between steps.",
        {"LCD": {}, "TCD": {"method": "tcd"}},
        also=(1, 2, 8),
    ),
    "rank": Group(
        "Rank",
        "Of the LoRA; or no LoRA but all weights, which take a smaller learning rate, 3e-4. All others have the"
        " same rate; each might do better at one of its own.",
        {"rank 16": {}} | RANKS | {"full": {"full": True, "learning_rate": 3e-4}},
    ),
}  # fmt: skip
SEED = {
    "seed": Group(
        "Seed",
        "The base run with another order, noise and beginning: what chance in training does, which the errors,"
        " which are those of pictures, do not hold.",
        {"seed 0": {}} | {f"seed {seed}": {"seed": seed} for seed in (1, 2)},
    ),
}  # fmt: skip


def length_group(steps: int, long: bool) -> Group:
    """Shorter trainings than the base run's `steps`; long: one of twice as many, too."""
    lengths = {steps // 4: "a quarter", steps // 2: "a half"} | ({2 * steps: "twice"} if long else {})
    return Group(
        "Length",
        "Of the training, with the warm-up and the decay of the learning rate in proportion.",
        {f"{steps} steps": {}} | {f"{n} steps, {how}": {"train_steps": n} for n, how in lengths.items() if n},
    )  # fmt: skip


def all_groups(steps: int, long: bool = False) -> dict[str, Group]:
    """The ablations by name. steps: of the base run's training; long: twice as many are tried."""
    return GROUPS | {"length": length_group(steps, long)} | SEED
