"""CLIP score: how well images fit their prompts. It needs CLIP's weights from a hub or a folder."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.images import to_image

CHUNK = 64  # texts that are embedded at a time


class CLIP(nn.Module):
    """CLIP's two encoders (Radford et al. 2021, arXiv 2103.00020), which turn pixels and texts into features."""

    def __init__(self, network: Any, tokenizer: Any, processor: Any, label: str, sha256: str) -> None:
        super().__init__()
        self.network, self.tokenizer, self.processor = network, tokenizer, processor
        self.label, self.sha256 = label, sha256

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """Features (B, P), float32, of pixels (B, 3, H, W) in [-1, 1]. Its own processor scales and cuts them."""
        images = [to_image(image) for image in pixels.cpu()]
        seen = self.processor(images, return_tensors="pt").pixel_values.to(pixels.device)
        features: Tensor = self.network.visual_projection(self.network.vision_model(pixel_values=seen).pooler_output)
        return features

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Features (B, P) of texts, which are cut to CLIP's length."""
        length = min(self.tokenizer.model_max_length, self.network.config.text_config.max_position_embeddings)
        tokens = self.tokenizer(list(texts), padding=True, max_length=length, truncation=True, return_tensors="pt")
        pooled = self.network.text_model(**tokens.to(self.network.device)).pooler_output
        features: Tensor = self.network.text_projection(pooled)
        return features


class Judge(NamedTuple):
    """CLIP, and its features of all prompts."""

    network: CLIP
    texts: Mapping[str, Tensor]  # prompt -> features (P,), on the CPU

    def score(self, features: Tensor, prompts: Iterable[str]) -> float:
        """Mean of 100 cos(image, text) (Hessel et al. 2021, arXiv 2104.08718, with w = 100). features: (N, P)."""
        texts = torch.stack([self.texts[prompt] for prompt in prompts])
        return 100 * float(F.cosine_similarity(features.double(), texts.double(), dim=1).mean())


def judge(clip: CLIP, prompts: Iterable[str]) -> Judge:
    """The judge that scores pictures of these prompts. Each prompt is embedded once."""
    unique = list(dict.fromkeys(prompts))
    parts = [clip.texts(unique[first : first + CHUNK]).cpu() for first in range(0, len(unique), CHUNK)]
    return Judge(clip, dict(zip(unique, torch.cat(parts), strict=True)))
