"""The bridge to diffusers: makes its pipelines few-step pipelines, and writes models for them."""
