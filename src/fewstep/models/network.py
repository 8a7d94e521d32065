"""The UNet as an implementation of the Network protocol."""

from typing import Any

import torch
from torch import Tensor, nn

from fewstep.diffusion.guidance import Conditioning, guidance_embedding


def takes_text(unet: Any) -> bool:
    """Whether a UNet takes text. A UNet2DModel, the network of a model in pixel space, does not."""
    return "cross_attention_dim" in unet.config


class UNetNetwork(nn.Module):
    """Maps x (B, C, H, W), t (B,) and a conditioning to the UNet's output, float32 whatever the UNet's own type.

    controlnet: a ControlNetModel. When the conditioning has a picture for it, its residuals, times `control_scale`,
    are added.
    """

    def __init__(self, unet: Any, controlnet: Any = None, control_scale: float = 1.0) -> None:
        super().__init__()
        self.unet, self.controlnet, self.control_scale = unet, controlnet, control_scale

    def forward(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        dtype: torch.dtype = self.unet.dtype
        if not takes_text(self.unet):
            bare: Tensor = self.unet(x.to(dtype), t.to(x.device), return_dict=False)[0]
            return bare.float()
        cast = conditioning.map(lambda part: part.to(x.device, dtype))
        x, t, sdxl = x.to(dtype), t.to(x.device), {}
        guidance = {} if conditioning.w is None else {"timestep_cond": self._embedded(conditioning.w.to(x.device))}
        if cast.pooled is not None:  # sizes enter sinusoids, for which half precision is too coarse
            sdxl = {"text_embeds": cast.pooled, "time_ids": conditioning.sizes}
        common = {"added_cond_kwargs": sdxl, "return_dict": False}
        residuals: dict[str, Any] = {}
        if self.controlnet is not None and cast.control is not None:
            down, middle = self.controlnet(
                x, t, cast.text, controlnet_cond=cast.control, conditioning_scale=self.control_scale, **common
            )
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        if cast.mask_and_latents is not None:
            x = torch.cat([x, cast.mask_and_latents], dim=1)
        text = cast.text if cast.negative is None else torch.cat([cast.text, cast.negative])
        output: Tensor = self.unet(x, t, text, **guidance, **common, **residuals)[0]
        return output.float()

    def _embedded(self, w: Tensor) -> Tensor:
        """LCM's w (B,) as the UNet takes it: embedded in float32, since half precision is too coarse for 1000 w."""
        embedding = guidance_embedding(w, self.unet.config.time_cond_proj_dim)
        return embedding.to(self.unet.dtype)


def embed_guidance(unet: Any, width: int = 256) -> None:
    """Make guidance an input of a UNet: LCM's w, embedded, goes through new weights to the timestep's embedding.

    The new weights are zero, so the UNet's output stays the same until they are trained. In diffusers this input is
    called timestep_cond, and its width time_cond_proj_dim.
    """
    first = unet.time_embedding.linear_1
    added = nn.Linear(width, first.in_features, bias=False, device=first.weight.device, dtype=first.weight.dtype)
    nn.init.zeros_(added.weight)
    unet.time_embedding.cond_proj = added
    unet.register_to_config(time_cond_proj_dim=width)
