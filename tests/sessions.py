"""Sessions as tests draw with them: on the CPU, in float32."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewstep.session import Picture, Session


def session(model: Path | str, loras: Sequence[str] | None = (), **where: Any) -> Session:
    """A session; where: more fields of Where."""
    return Session(str(model), loras, **({"dtype": "fp32", "device": "cpu"} | where))


def pictures(model: Path | str, prompts: str | Sequence[str], loras: Sequence[str] = (), **draw: Any) -> list[Picture]:
    """Pictures of a session that is opened for them."""
    with session(model, loras) as opened:
        return list(opened.draw(prompts, **draw))
