"""The UNet behind the Network protocol."""

from typing import Any

import torch
from torch import Tensor, nn

from fewstep.diffusion.guidance import Conditioning


class UNetNetwork(nn.Module):
    """x (B, C, H, W), t (B,), conditioning -> the UNet's output, float32 whatever the UNet's own type.

    controlnet: a ControlNetModel whose residuals are added, `control_scale` times, where the conditioning has a
    picture for it.
    """

    def __init__(self, unet: Any, controlnet: Any = None, control_scale: float = 1.0) -> None:
        super().__init__()
        self.unet, self.controlnet, self.control_scale = unet, controlnet, control_scale

    def forward(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        dtype: torch.dtype = self.unet.dtype
        told = conditioning.map(lambda part: part.to(x.device, dtype))
        x, t, sdxl = x.to(dtype), t.to(x.device), {}
        if told.pooled is not None:  # sizes go through sinusoids: not in half precision
            sdxl = {"text_embeds": told.pooled, "time_ids": conditioning.sizes}
        common = {"added_cond_kwargs": sdxl, "return_dict": False}
        residuals: dict[str, Any] = {}
        if self.controlnet is not None and told.control is not None:
            down, middle = self.controlnet(
                x, t, told.text, controlnet_cond=told.control, conditioning_scale=self.control_scale, **common
            )
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        if told.beside is not None:
            x = torch.cat([x, told.beside], dim=1)
        text = told.text if told.negative is None else torch.cat([told.text, told.negative])
        output: Tensor = self.unet(x, t, text, **common, **residuals)[0]
        return output.float()
