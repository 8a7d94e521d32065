"""The blocks of a model. A LoRA can have a weight of its own for each."""

BLOCKS = ("te", "te1", "te2", "down", "mid", "up", *(f"down{i}" for i in range(4)), *(f"up{i}" for i in range(4)))


def blocks_of(module: str) -> tuple[str, ...]:
    """The blocks that contain a module, narrowest first."""
    first, _, rest = module.partition(".")
    place = rest.partition(".")[0]
    if first in ("text_encoder", "text_encoder_2"):
        return ("te1" if first == "text_encoder" else "te2", "te")
    if first in ("down_blocks", "up_blocks"):
        side = first.removesuffix("_blocks")
        return (f"{side}{place}", side)
    return ("mid",) if first == "mid_block" else ()
