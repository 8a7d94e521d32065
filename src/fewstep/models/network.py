"""The UNet behind the Network protocol."""

from typing import Any

import torch
from torch import Tensor, nn

from fewstep.diffusion.guidance import Conditioning


class UNetNetwork(nn.Module):
    """x (B, C, H, W), t (B,), conditioning -> the UNet's output, float32 whatever the UNet's own type."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        dtype: torch.dtype = self.unet.dtype
        text = conditioning.text.to(x.device, dtype)
        output: Tensor = self.unet(x.to(dtype), t.to(x.device), encoder_hidden_states=text, return_dict=False)[0]
        return output.float()
