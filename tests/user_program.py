"""What a user writes, as a type checker sees it: each `type: ignore` is a mistake that it has to find."""

# mypy: disallow-any-expr

from pathlib import Path

import fewstep
from fewstep import DistillConfig, Draw, FewstepError, SampleConfig, Session, Where


def drawn() -> list[str]:
    """Prompts and seeds of pictures, by every way to draw."""
    names: list[str] = []
    with Session("emoji", loras=["lcm"]) as session:
        for picture in session.draw("a red fox", steps=4, seed=7, count=2):
            picture.image.save(f"{picture.recipe['seed']}.png")
            names.append(picture.recipe["prompt"] + str(picture.recipe["seed"] + 1))
        session.plug(["high-contrast:0.5", "lcm"])
        with session.plugged("noto-mono:0.8", "lcm") as other:
            pixels = next(other.draw(Draw(prompts=("a castle",), steps=2))).pixels
            names.append(str(tuple(pixels.shape)))
        names += [lora["file"] for lora in session.loras]
        session.draw("a red fox", stpes=4)  # type: ignore[call-arg]
        session.draw("a red fox", steps="four")  # type: ignore[arg-type]
    with Session.open(Where(model="emoji", dtype="fp32")) as session:
        names += [picture.recipe["solver"] for picture in session.draw(["a", "b"], grid="trailing")]
    pictures = fewstep.sample("a red fox", "emoji", ["lcm"], steps=4, width=128)
    fewstep.sample("a red fox", colour="red")  # type: ignore[call-arg]
    return names + [str(picture.image.size) for picture in pictures]


def made(data: Path, out: Path) -> Path:
    """A LoRA, of fields and of a config, and what the other commands make."""
    lora = fewstep.distill(model="emoji", data=data, out=out, train_steps=100, psi="dpm-solver++")
    lora = fewstep.distill(DistillConfig(model="emoji", data=data, out=out))
    style: Path = fewstep.finetune(model="emoji", data=data, out=out, rank=8)
    both: Path = fewstep.merge(files=(f"{style}:0.8", str(lora)), out=out / "both.safetensors")
    table = fewstep.compare(rows=("ddim:32", "lcm:4+lcm:1"), images=8, out=out)
    print(table.rows[0]["spec"], table.out / "report.html")
    fewstep.distill(model="emoji", data=data, out=out, stpes=100)  # type: ignore[call-overload]
    lora = fewstep.distill(model="emoji", synthetic=True, images=100, out=out)
    fewstep.distill(model="emoji", data=data)  # type: ignore[call-overload]
    SampleConfig(prompts=("a",), colour="red")  # type: ignore[call-arg]
    return both


def noted(event: fewstep.Note | fewstep.Progress | fewstep.Preview) -> None:
    """A sink of one's own."""
    if isinstance(event, fewstep.Note):
        print(event.text)
    elif isinstance(event, fewstep.Progress):
        print(event.done / event.total)


def accelerated(pipe: object) -> None:
    """A pipeline of diffusers, for a while."""
    try:
        with fewstep.accelerate(pipe, "lcm-lora-sdv1-5", steps=4) as fast:
            print(fast.plan.timesteps)
    except FewstepError as error:
        print(error.message, error.hint)
    Session("emoji", sink=noted).close()
    fewstep.smaple("a red fox")  # type: ignore[attr-defined]
