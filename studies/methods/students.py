"""The students that are compared: how each is trained, and at which guidance it is sampled."""

from pathlib import Path
from typing import Any, NamedTuple

from fewstep.configs import DistillConfig, build
from fewstep.errors import UsageError
from fewstep.io import cache_dir
from studies.methods.config import MethodsConfig
from studies.trainings import Run, placed

GUIDANCE = 4.0  # of the teacher, whose pictures most students learn to draw without it
SHARED: dict[str, Any] = {"psi": "dpm-solver++", "decay": "cosine", "ema": 0.98}
LORA: dict[str, Any] = {"rank": 16, "learning_rate": 7e-4, "k": 50, "guidance_scale": GUIDANCE}
PCM: dict[str, Any] = LORA | {"method": "pcm", "phases": 4}
FULL: dict[str, Any] = {"full": True, "w_embedding": True, "learning_rate": 3e-4, "k": 50}
SCALES = (2.0, GUIDANCE, 7.0)  # LCM's w of 1, 3 and 6


class Student(NamedTuple):
    """A training, and how its result is sampled."""

    name: str  # on the page
    training: dict[str, Any]  # beside SHARED
    scales: tuple[float, ...] = (1.0,)  # guidance scales it is sampled at
    guidance_inside: bool = True  # whether it draws the teacher's guided pictures at scale 1

    def judged_at(self, scale: float) -> float:
        """The teacher's guidance that pictures of that scale are compared with."""
        return GUIDANCE if self.guidance_inside else scale


LCD = Student("LCD", LORA)
FOUR, EIGHT = Student("PCM, 4 phases", PCM), Student("PCM, 8 phases", PCM | {"k": 25, "phases": 8})
FREE = Student(
    "PCM, 4 phases, no guidance inside", PCM | {"guidance_scale": 1.0, "drop_captions": 0.1}, (GUIDANCE,), False
)
EMBEDDED = Student("full LCM", FULL | {"guidance_scale": min(SCALES), "guidance_scale_max": max(SCALES)}, SCALES, False)
SYNTHETIC = Student("LCD, no images", LORA | {"synthetic": True})
STUDENTS = (LCD, FOUR, EIGHT, FREE, EMBEDDED, SYNTHETIC)


def chosen(names: tuple[str, ...]) -> tuple[Student, ...]:
    """The students of these names, or all. Raises UsageError for a name that there is not."""
    known = [student.name for student in STUDENTS]
    for name in names:
        if name not in known:
            raise UsageError(f"unknown student {name}", f"there are {'; '.join(known)}")
    return tuple(student for student in STUDENTS if student.name in (names or known))


def run_of(student: Student, config: MethodsConfig, data: Path, of: str) -> Run:
    """The student's training. of: hash of the model and the data."""
    steps = config.train_steps
    options = {"train_steps": steps, "batch_size": config.batch_size, "warmup": steps // 10} | SHARED | student.training
    options |= {"precision": config.precision, "device": config.device, "checkpoint_every": 50, "resume": True}
    options |= {} if "synthetic" in options else {"data": data}
    described = build(DistillConfig, model=config.model, out=cache_dir() / "methods", **options)
    return Run(student.name, placed(described, of))


def result_of(run: Run) -> Path:
    """What a training leaves: the file of a LoRA, or the folder of a model."""
    return run.config.out / "model" if run.config.full else run.lora
