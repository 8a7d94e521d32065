"""What pictures are drawn with: the model, the LoRAs plugged into it, the engine that runs it."""

from typing import Annotated, Literal, TypedDict

from pydantic import Field

from fewstep.configs.base import Config, DrawingDevice, ModelName, Typed

Loras = Annotated[tuple[str, ...], Typed(with_default=False)]
EngineName = Annotated[
    str,
    Field(
        description="What runs the networks. auto is openvino on a CPU, if it is installed and has what you ask for,"
        " else torch; compare, tune, demo and serve change LoRAs often, and there it is torch. onnx is ONNX Runtime."
        " openvino and onnx build the networks anew for LoRAs that they have not met, in seconds to minutes; they keep"
        " what they built. compiled is torch.compile, for GPUs."
    ),
]
BF16_PSNR = 40  # dB, of emoji's pictures in bf16 to those in fp32: the median; a test holds it
INT8_PSNR = 32  # dB, in int8
DType = Annotated[
    Literal["auto", "fp32", "bf16", "fp16", "int8"],
    Field(
        description="Precision of the networks. auto is the fastest one that the device computes natively: fp16 on a"
        " GPU, bf16 on a CPU with instructions for it, else fp32. At least half of emoji's pictures in bf16 have a PSNR"
        f" of {BF16_PSNR} dB or more to the same pictures in fp32. int8, of the engine"
        f" openvino on a CPU, is faster and less exact: a median PSNR of {INT8_PSNR} dB."
    ),
]


class Where(Config):
    """What a session is opened with."""

    model: ModelName = "emoji"
    loras: Loras | None = None
    """A LoRA to add, as FILE or FILE:WEIGHT; several times to add several. lcm, high-contrast and noto-mono ship.
    FILE may also be the folder that holds the LoRA, or one of the hub, as owner/name or lcm-lora-sdv1-5. By default
    emoji takes lcm, unless the solver is one for ordinary models."""
    live_lora: bool = False
    """Add the LoRAs beside the layers at every call instead of into the weights: slower, but nothing of a weak LoRA is
    rounded away in bf16 or fp16."""
    engine: EngineName = "auto"
    dtype: DType = "auto"
    device: DrawingDevice = "auto"
    offload: bool = False
    """Keep on the GPU only the network that computes, and the others in the computer's memory. It takes less of the
    GPU's memory, and a little more time for each picture."""
    controlnet: str | None = None
    """The folder or hub id of a ControlNet, which draws after a control image."""
    decoder: str = "auto"
    """What makes pixels of latents. full: the model's autoencoder, whole pictures at once. tiled: the same in
    overlapping tiles, which takes little memory. auto: full, but tiled for pictures of more than 1536 x 1536 pixels.
    tiny: TAESD, which is many times as fast and draws fine details less exactly; it comes from the hub. Or the folder
    or hub id of another AutoencoderTiny."""
    no_safety_checker: bool = False
    """Do without the safety checker that the model's folder brings."""

    @property
    def where(self) -> "Where":
        """These fields alone, of a config that has more."""
        return Where.model_construct(**{name: getattr(self, name) for name in Where.model_fields})


class WhereOptions(TypedDict, total=False):
    """The fields of `Where` as keywords, but for the model and the LoRAs. A test holds the two against each other."""

    live_lora: bool
    engine: EngineName
    dtype: DType
    device: DrawingDevice
    offload: bool
    controlnet: str | None
    decoder: str
    no_safety_checker: bool
