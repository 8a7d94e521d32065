"""fewstep: turn any Stable Diffusion model into a 4-step generator."""

__version__ = "0.1.0"
