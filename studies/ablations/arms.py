"""The ablations' arms: ways to train that differ in what a user chooses, each trained from several seeds."""

from typing import Any, NamedTuple

BASE: dict[str, Any] = {
    "rank": 16,
    "guidance_scale": 4.0,
    "psi": "ddim",
    "k": 20,
    "target": "ema",
    "target_decay": 0.95,
    "loss": "huber",
    "huber_c": 0.001,
    "learning_rate": 3e-4,  # the online target falls apart at 1e-3, which the average bears
    "decay": "cosine",
    "ema": 0.98,
}
ONLINE: dict[str, Any] = {"target": "student"}
RANGE: dict[str, Any] = {"guidance_scale": 2.0, "guidance_scale_max": 6.0}  # around the base's own
PUBLISHED: dict[str, Any] = {"guidance_scale": 6.0, "guidance_scale_max": 16.0}  # the published script's w of 5 to 15


class Arm(NamedTuple):
    """A way to train."""

    name: str
    changes: dict[str, Any]  # from the base

    @property
    def guidance_scale(self) -> float:
        """What it was distilled at: the mean of what is drawn."""
        low: float = self.changes.get("guidance_scale", BASE["guidance_scale"])
        high: float | None = self.changes.get("guidance_scale_max")
        return low if high is None else (low + high) / 2


def arms(steps: int) -> tuple[Arm, ...]:
    """The base first. steps: of its training."""
    return (
        Arm("base", {}),
        Arm("guidance drawn, 2 to 6", RANGE),
        Arm("online target", ONLINE),
        Arm("online target, guidance drawn, 2 to 6", ONLINE | RANGE),
        Arm("online target, guidance drawn, 6 to 16", ONLINE | PUBLISHED),
        Arm("Psi DPM-Solver++(2S)", {"psi": "dpm-solver++"}),
        Arm("k = 50", {"k": 50}),
        Arm("k = 100", {"k": 100}),
        Arm("method TCD", {"method": "tcd"}),
        Arm("rank 4", {"rank": 4}),
        Arm("rank 64", {"rank": 64}),
        Arm("half as long", {"train_steps": max(steps // 2, 1)}),
        Arm("twice as long", {"train_steps": 2 * steps}),
    )
