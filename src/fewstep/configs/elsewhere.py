"""What options of the published scripts and of other programs are called here.

The scripts: diffusers' train_lcm_distill_*.py, train_text_to_image*.py and train_dreambooth*.py, kohya's sd-scripts;
and the options of pipelines and web pages that draw. Names are compared without dashes and underscores.
"""

from collections.abc import Sequence

from fewstep.configs.base import Config, option_name

HERE: dict[str, tuple[str, ...]] = {  # field: what it is called elsewhere
    "model": (
        "pretrained_teacher_model", "pretrained_model_name_or_path", "teacher_model", "base_model", "model_id",
        "model_name", "model_path", "ckpt", "ckpt_path", "checkpoint",
    ),
    "data": (
        "train_data_dir", "dataset_name", "train_shards_path_or_url", "instance_data_dir", "dataset", "data_dir",
        "dataset_config", "image_dir", "image_folder", "images",
    ),
    "max_samples": ("max_train_samples",),
    "out": ("output_dir", "output", "output_name", "outdir", "out_dir", "save_to", "save_path", "logging_dir"),
    "size": ("resolution", "image_size", "img_size"),
    "width": ("W", "resolution", "size", "image_size"),
    "height": ("H",),
    "train_steps": ("max_train_steps", "train_steps", "num_steps"),
    "epochs": ("num_train_epochs", "max_train_epochs"),
    "steps": ("num_inference_steps", "sampling_steps", "inference_steps", "ddim_steps", "num_steps", "n_steps"),
    "batch_size": ("train_batch_size", "bs", "batch", "eval_batch_size"),
    "accumulate": ("gradient_accumulation_steps", "grad_accum"),
    "learning_rate": ("lr", "unet_lr", "initial_learning_rate"),
    "warmup": ("lr_warmup_steps", "warmup_steps"),
    "decay": ("lr_scheduler", "lr_scheduler_type"),
    "power": ("lr_power", "lr_scheduler_power"),
    "cycles": ("lr_num_cycles", "lr_scheduler_num_cycles"),
    "weight_decay": ("adam_weight_decay",),
    "beta1": ("adam_beta1",),
    "beta2": ("adam_beta2",),
    "epsilon": ("adam_epsilon",),
    "gradient_clip": ("max_grad_norm", "clip_grad_norm"),
    "ema": ("use_ema", "ema_rate"),
    "target_decay": ("ema_decay",),
    "optimizer": ("optimizer_type",),
    "precision": ("mixed_precision", "fp16", "bf16", "full_fp16", "full_bf16"),
    "dtype": ("torch_dtype", "precision", "mixed_precision", "fp16", "bf16", "half", "save_precision"),
    "checkpoint_every": ("checkpointing_steps", "save_every_n_steps", "save_every_n_epochs", "save_steps"),
    "resume": ("resume_from_checkpoint",),
    "resume_from": ("resume_from_checkpoint",),
    "keep_checkpoints": ("checkpoints_total_limit",),
    "buckets": ("enable_bucket",),
    "random_crops": ("random_crop",),
    "random_flip": ("flip_aug",),
    "workers": ("dataloader_num_workers", "max_data_loader_n_workers"),
    "tracker": ("report_to", "log_with"),
    "push_to_hub": ("hub_model_id", "huggingface_repo_id"),
    "project": ("tracker_project_name", "log_tracker_name", "wandb_run_name"),
    "preview_every": ("validation_steps", "sample_every_n_steps", "validation_epochs", "sample_every_n_epochs"),
    "preview_prompts": ("validation_prompt", "validation_prompts", "sample_prompts"),
    "preview_images": ("num_validation_images",),
    "rank": ("lora_rank", "network_dim", "dim", "new_rank", "lora_r"),
    "lora_alpha": ("network_alpha",),
    "lora_dropout": ("network_dropout",),
    "modules": ("lora_target_modules", "target_modules"),
    "init_lora": ("network_weights", "lora_weights", "dim_from_weights"),
    "drop_captions": ("proportion_empty_prompts", "caption_dropout_rate", "caption_dropout"),
    "k": ("num_ddim_timesteps", "skipping_step", "skip_steps"),
    "loss": ("loss_type",),
    "guidance_scale": ("w_min", "cfg", "cfg_scale", "scale", "guidance", "w", "guidance_weight"),
    "guidance_scale_max": ("w_max",),
    "method": ("distillation_method",),
    "loras": ("lora_path", "lora_weights", "network_weights", "lora_scale", "network_mul", "lora_model_id", "loras"),
    "count": ("num_images_per_prompt", "num_images", "n_samples", "n_iter", "images_per_prompt", "batch_count"),
    "solver": ("scheduler", "sampler", "sampler_name", "sampling_method"),
    "negative_prompt": ("neg_prompt", "n_prompt", "negative"),
    "image": ("init_image", "init_img", "input_image"),
    "mask": ("mask_image", "mask_path"),
    "strength": ("denoising_strength", "denoise"),
    "control_scale": ("controlnet_conditioning_scale", "controlnet_scale"),
    "control_image": ("conditioning_image", "control_net_image"),
    "no_safety_checker": ("disable_safety_checker", "disable_safe_unpickle"),
    "files": ("models", "model", "lora_paths"),
    "into": ("sd_model",),
    "prompts": ("prompt",),
    "prompt_file": ("from_file", "prompts_file"),
}  # fmt: skip

NOTES: dict[str, str] = {  # how a value is carried over, by the name elsewhere
    "w_min": "a guidance scale is 1 + w",
    "w_max": "a guidance scale is 1 + w",
    "w": "a guidance scale is 1 + w",
    "num_ddim_timesteps": "1000 over their number: 20 for 50",
    "lora_scale": "as in --lora FILE:0.8",
    "network_mul": "as in --lora FILE:0.8",
    "use_ema": "a decay, 0 for none",
    "validation_prompt": "a file with a prompt a line",
    "validation_epochs": "in steps",
    "sample_every_n_epochs": "in steps",
    "resolution": "in pixels",
    "num_inference_steps": "steps are network calls of one branch",
}

NOT_HERE: dict[str, str] = {  # what needs no option, or is not done, by the name elsewhere
    "synthetic": "only distill can do without images; finetune teaches what real images show: name them with --data",
    "network_module": "leave it out: LoRAs of all layers that LCM-LoRA adapts are trained, or those of --modules",
    "teacher_revision": "write the revision behind the model: --model owner/name@revision",
    "revision": "write the revision behind the model: --model owner/name@revision",
    "variant": "leave it out: fp16 weights are taken where there are no others",
    "cache_dir": "set HF_HUB_CACHE for what comes from the hub, FEWSTEP_CACHE for encoded images",
    "pretrained_vae_model_name_or_path": "leave it out: the model's own autoencoder is used",
    "vae": "leave it out: the model's own autoencoder is used",
    "cache_latents": "leave it out: images and captions are always encoded once and kept",
    "cache_latents_to_disk": "leave it out: images and captions are always encoded once and kept",
    "center_crop": "leave it out: images are cut at their centre unless --random-crops says otherwise",
    "image_column": "name the table's columns image, or file_name, and text",
    "caption_column": "name the table's columns image, or file_name, and text",
    "caption_extension": "leave it out: captions are read from .txt, .caption and .json files",
    "instance_prompt": "write it to a .txt file beside each image",
    "class_prompt": "there are no class images; keep --steps few and --rank low instead",
    "class_data_dir": "there are no class images; keep --steps few and --rank low instead",
    "reg_data_dir": "there are no class images; keep --steps few and --rank low instead",
    "use_8bit_adam": "give --optimizer adamw-8bit",
    "scale_lr": "leave it out, and give the rate itself",
    "enable_xformers_memory_efficient_attention": "leave it out: PyTorch's own attention is as lean",
    "xformers": "leave it out: PyTorch's own attention is as lean",
    "sdpa": "leave it out: it is always used",
    "allow_tf32": "leave it out, and use --precision bf16",
    "hub_token": "leave it out: log in with `hf auth login`, or set HF_TOKEN",
    "huggingface_token": "leave it out: log in with `hf auth login`, or set HF_TOKEN",
    "snr_gamma": "noise levels are not weighed when fine-tuning; distill has --weighting",
    "min_snr_gamma": "noise levels are not weighed when fine-tuning; distill has --weighting",
    "noise_offset": "leave it out: noise has no offset",
    "prediction_type": "leave it out: the model's own scheduler says it",
    "v_parameterization": "leave it out: the model's own scheduler says it",
    "v2": "leave it out: the model's own files say it",
    "sdxl": "leave it out: the model's own files say it",
    "train_text_encoder": "text encoders are not trained",
    "text_encoder_lr": "text encoders are not trained",
    "network_train_unet_only": "leave it out: text encoders are not trained",
    "clip_skip": "leave it out: the text encoder's last layer is read, as the model was trained",
    "save_model_as": "leave it out: files are .safetensors",
}


def answer(kind: type[Config], option: str) -> str | None:
    """What to type instead of an option that the command of this config does not have; None where it is not known."""
    name = plain(option)
    for field, others in HERE.items():
        if field in kind.model_fields and name in map(plain, others):
            typed = f"{kind.argument[1]}, without an option" if kind.argument and kind.argument[0] == field else None
            note = next((text for other, text in NOTES.items() if plain(other) == name), "")
            return f"here it is {typed or option_name(field)}" + (f" ({note})" if note else "")
    return next((text for other, text in NOT_HERE.items() if plain(other) == name), None)


def answers(kind: type[Config], typed: Sequence[str]) -> dict[str, str]:
    """What to type instead of each option among these words that the command lacks and that is known elsewhere."""
    own = {plain(option_name(field)) for field in kind.model_fields}
    options = [word.partition("=")[0] for word in typed if word.startswith("-") and plain(word) not in own]
    return {option: text for option in options if (text := answer(kind, option)) is not None}


def plain(option: str) -> str:
    """The name without what programs spell differently; -w and -W are two."""
    name = option.partition("=")[0].replace("-", "").replace("_", "")
    return name.lower() if len(name) > 1 else name
