"""The sections of the help of commands with many options, in the order in which help has them."""

from collections.abc import Mapping

Sections = Mapping[str, tuple[str, ...]]  # title -> fields

TRAINING: Sections = {
    "What to train on": (
        *("model", "data", "synthetic", "prompt_file", "images", "synthetic_steps", "synthetic_guidance_scale"),
        *("min_size", "where", "skip_broken", "max_samples"),
    ),
    "How images become training pictures": (
        *("size", "buckets", "random_crops", "random_flip", "sample_latents", "drop_captions", "workers"),
    ),
    "What is trained": (
        *("full", "rank", "lora_alpha", "lora_dropout", "modules", "init_lora", "w_embedding"),
    ),
    "The distillation": (
        *("method", "k", "psi", "guidance_scale", "guidance_scale_max", "target", "target_decay", "loss", "huber_c"),
        *("focus", "weighting", "grid", "sampler", "phases", "first_levels", "last_levels", "curriculum"),
    ),
    "The training": (
        *("train_steps", "epochs", "batch_size", "accumulate", "learning_rate", "warmup", "decay", "power", "cycles"),
        *("optimizer", "weight_decay", "beta1", "beta2", "epsilon", "gradient_clip", "ema", "seed"),
    ),
    "Memory and speed": ("device", "precision", "frozen_weights", "shard", "gradient_checkpointing"),
    "The run": (
        *("out", "resume", "resume_from", "checkpoint_every", "keep_checkpoints", "log_every", "tracker", "project"),
        "push_to_hub",
    ),
    "Previews": ("preview_every", "preview_prompts", "preview_images", "preview_clip"),
}  # fmt: skip
DRAWING: Sections = {
    "What to draw": (
        *("steps", "guidance_scale", "negative_prompt", "nag_scale", "seed", "count", "width", "height"),
        *("prompt_file", "redraw"),
    ),
    "What draws": (
        *("model", "loras", "live_lora", "engine", "dtype", "device", "offload", "decoder", "batch_size"),
        "no_safety_checker",
    ),
    "Files": ("out", "format", "sheet", "as_json"),
    "From a picture": (
        *("image", "strength", "mask", "outpaint", "controlnet", "control_image", "control_scale", "sketch"),
    ),
    "The sampler": ("solver", "grid", "k", "eta", "gamma"),
}  # fmt: skip
SECTIONS: Mapping[str, Sections] = {  # config -> its sections; the other commands have few options
    "DistillConfig": TRAINING,
    "FinetuneConfig": TRAINING,
    "SampleConfig": DRAWING,
}
REST = "Other options"


def section_of(config: str, field: str) -> tuple[int, str] | None:
    """The number and title of the section that a field of a config is in; None if its help has no sections."""
    if config not in SECTIONS:
        return None
    titles = list(SECTIONS[config])
    found = next((title for title in titles if field in SECTIONS[config][title]), REST)
    return (titles.index(found) if found in titles else len(titles)), found
