"""Configs: frozen, complete, with ranges whose refusals name the option as typed."""

import json
import re
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field, ValidationError

from fewstep import configs
from fewstep.configs import (
    CompareConfig,
    Config,
    DistillConfig,
    DoctorConfig,
    FinetuneConfig,
    MergeConfig,
    SampleConfig,
    TrainingConfig,
    answers,
    build,
    describe,
    option_name,
)
from fewstep.configs.elsewhere import HERE, NOTES, plain
from fewstep.configs.sections import SECTIONS
from fewstep.errors import UsageError

SAMPLE = {"prompts": ("a cat",), "model": "m"}
DISTILL = {"model": "m", "data": "d", "out": "o"}


def test_defaults_are_the_documented_ones():
    config = build(SampleConfig, **SAMPLE)
    assert (config.solver, config.steps, config.guidance_scale, config.seed, config.strength) == (
        "auto",
        None,
        None,
        0,
        None,
    )
    distill = build(DistillConfig, **DISTILL)
    assert (distill.method, distill.psi, distill.k, distill.rank, distill.ema) == ("lcd", "ddim", 20, 64, 0.95)
    assert distill.guidance_scale == 1 + 7.5  # the report's w
    assert build(FinetuneConfig, **DISTILL).drop_captions == 0.1


def test_help_is_wrapped_where_it_is_shown():
    describe(DistillConfig)
    told = [field.description for field in DistillConfig.model_fields.values()]
    assert max(map(len, told)) > 200  # some docstrings have several lines
    assert not any("\n" in text for text in told)


def test_configs_do_not_change():
    config = build(SampleConfig, **SAMPLE)
    with pytest.raises(ValidationError, match="frozen"):
        config.steps = 3


def test_configs_survive_json():
    config = build(DistillConfig, **DISTILL, guidance_scale_max=9.5, init_lora="x.safetensors")
    assert build(DistillConfig, **json.loads(config.model_dump_json())) == config
    assert config.data == "d"
    assert build(DistillConfig, **DISTILL | {"data": Path("d")}) == build(DistillConfig, **DISTILL)
    assert build(DistillConfig, **DISTILL | {"data": "s3://bucket/{00..99}.tar"}).data == "s3://bucket/{00..99}.tar"


@pytest.mark.parametrize(
    ("field", "inside", "outside"),
    [
        ("steps", (1, 1000), (0, 1001, 2.5, "four")),
        ("guidance_scale", (0, 50), (-0.1, 50.1, float("nan"), "high")),
        ("seed", (0, 2**63 - 1), (-1, 2**63)),
        ("count", (1, 10000), (0, 10001)),
        ("batch_size", (1, 1024), (0, 1025)),
        ("width", (8, 8192), (7, 8193)),
        ("height", (8, 8192), (7, 8193)),
        ("strength", (1e-9, 1), (0, 1.01, float("nan"))),
        (
            "solver",
            ("auto", "lcm", "ddim", "dpm-solver", "dpm-solver++", "dpm-solver++2s", "euler"),
            ("euler-b", "", "DDIM"),
        ),
        ("eta", (0, 1), (-0.1, 1.1, float("nan"))),
        ("gamma", (0, 1), (-0.1, 1.1)),
        ("dtype", ("fp32", "bf16", "fp16", "int8"), ("int4",)),
        ("device", ("auto", "cpu", "cuda", "mps"), ("tpu",)),
    ],
)
def test_ranges_of_sampling(field, inside, outside):
    given = SAMPLE | ({"image": "a.png"} if field == "strength" else {})
    for value in inside:
        assert getattr(build(SampleConfig, **given, **{field: value}), field) == value
    for value in outside:
        with pytest.raises(UsageError) as caught:
            build(SampleConfig, **given, **{field: value})
        assert caught.value.message.startswith(f"{field} {value}: ")
        assert "\n" not in caught.value.message
        assert caught.value.hint


@pytest.mark.parametrize(
    ("field", "inside", "outside"),
    [
        ("train_steps", (1,), (0,)),
        ("epochs", (1,), (0, 0.5)),
        ("decay", ("constant", "linear", "polynomial", "cosine"), ("exponential",)),
        ("beta1", (0, 0.99), (1, -0.1)),
        ("epsilon", (1e-12,), (0, 1)),
        ("lora_alpha", (0.1, 128), (0, float("nan"))),
        ("lora_dropout", (0, 0.9), (1, -0.1)),
        ("learning_rate", (1e-9, 0.99), (0, 1, float("nan"))),
        ("ema", (0, 0.999), (1, -0.1)),
        ("target_decay", (0, 0.999), (1, -0.1)),
        ("rank", (1, 1024), (0, 1025)),
        ("k", (1, 500), (0, 501)),
        ("guidance_scale", (1, 50), (0.5, 51)),
        ("guidance_scale_max", (1, 50), (0.5, 51)),
        ("drop_captions", (0, 1), (-0.1, 1.1)),
        ("huber_c", (1e-9,), (0,)),
        ("focus", (0, 1), (-0.1, 1.1)),
        ("size", (8, 4096), (7, 4097)),
        ("method", ("lcd", "tcd", "lcf"), ("gan",)),
        ("loss", ("huber", "l2"), ("l1",)),
        ("target", ("student", "ema"), ("teacher",)),
        ("tracker", ("tensorboard", "wandb", "mlflow", "comet_ml", "swanlab"), ("printer",)),
        ("preview_every", (1,), (0, "often")),
        ("precision", ("fp32", "bf16", "fp16"), ("fp8",)),
    ],
)
def test_ranges_of_distilling(field, inside, outside):
    for value in inside:
        assert getattr(build(DistillConfig, **DISTILL, **{field: value}), field) == value
    for value in outside:
        with pytest.raises(UsageError) as caught:
            build(DistillConfig, **DISTILL, **{field: value})
        assert caught.value.message.startswith(f"{field} {value}: ")
        assert caught.value.exit_code == 2


def test_what_is_unknown_missing_or_empty():
    with pytest.raises(UsageError, match=r"^there is no option colour\n\nhint: see help"):
        build(SampleConfig, **SAMPLE, colour="red")
    with pytest.raises(UsageError, match=r"^model is required\n\nhint: "):
        build(DistillConfig, data="d", out="o")
    with pytest.raises(UsageError, match=r'^no prompt was given\n\nhint: .*fewstep sample "a red fox"'):
        build(SampleConfig, prompts=())


@pytest.mark.parametrize(
    ("kind", "field", "told"),
    [
        (SampleConfig, "steps", "From 1 to 1,000."),
        (SampleConfig, "seed", "From 0 to 2^63 - 1."),
        (SampleConfig, "strength", "Above 0, at most 1."),
        (DistillConfig, "train_steps", "At least 1."),
        (DistillConfig, "learning_rate", "Above 0, below 1."),
        (DistillConfig, "huber_c", "Above 0."),
        (DistillConfig, "ema", "At least 0, below 1."),
        (DistillConfig, "guidance_scale_max", "From 1 to 50."),
        (FinetuneConfig, "drop_captions", "From 0 to 1."),
        (DoctorConfig, "prune", "At least 0."),
    ],
)
def test_help_ends_with_the_range(kind, field, told):
    describe(kind)
    describe(kind)  # a second time changes nothing
    help_ = kind.model_fields[field].description
    assert help_.endswith(f". {told}")
    assert help_.count(told) == 1  # also of a field that was inherited twice


def test_help_without_a_range_has_none():
    class Widths(Config):
        """Of two kinds."""

        below: Annotated[int, Field(lt=10)] = 1
        """Pixels."""
        free: int = 1
        """Pixels."""

    describe(Widths)
    assert Widths.model_fields["below"].description == "Pixels. At most 9."
    assert Widths.model_fields["free"].description == "Pixels."


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "nan", "-inf"])
@pytest.mark.parametrize(
    ("kind", "given", "field"),
    [(SampleConfig, SAMPLE, "guidance_scale"), (DistillConfig, DISTILL, "huber_c"), (DistillConfig, DISTILL, "ema")],
)
def test_numbers_are_finite(kind, given, field, value):
    with pytest.raises(UsageError, match=rf"^{field} -?(nan|inf): input should be a finite number\n"):
        build(kind, **given, **{field: value})


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (SampleConfig, {"strength": 0.3}, "strength needs image"),
        (SampleConfig, {"mask": "m.png"}, "mask needs image"),
        (SampleConfig, {"sketch": True}, "sketch needs control_image"),
        (SampleConfig, {"control_scale": 0.5}, "control_scale needs control_image"),
        (SampleConfig, {"nag_scale": 5}, "nag_scale needs negative_prompt"),
        (CompareConfig, {"clip_model": "folder"}, "clip_model needs clip_score"),
        (DistillConfig, {"loss": "l2", "huber_c": 0.1}, "huber_c needs loss huber"),
        (DistillConfig, {"target": "student", "target_decay": 0.5}, "target_decay needs target ema"),
        (DistillConfig, {"full": True, "init_lora": "a"}, "init_lora and full exclude each other"),
        (DistillConfig, {"full": True, "lora_alpha": 4}, "lora_alpha and full exclude each other"),
        (FinetuneConfig, {"full": True, "lora_dropout": 0.1}, "lora_dropout and full exclude each other"),
        (FinetuneConfig, {"epochs": 2, "train_steps": 5}, "epochs and train_steps exclude each other"),
        (FinetuneConfig, {"project": "p"}, "project needs tracker"),
        (DistillConfig, {"preview_images": 8}, "preview_images needs preview_every"),
        (FinetuneConfig, {"power": 2}, "power needs decay polynomial"),
        (DistillConfig, {"cycles": 2, "decay": "linear"}, "cycles needs decay cosine"),
        (FinetuneConfig, {"full": True, "modules": "attention"}, "modules and full exclude each other"),
        (MergeConfig, {"into": "m", "dialect": "peft"}, "dialect and into exclude each other"),
        (MergeConfig, {"into": "m", "rank": 4}, "rank and into exclude each other"),
    ],
)
def test_what_would_change_nothing_is_refused(kind, options, message):
    given = {SampleConfig: SAMPLE, CompareConfig: {}, MergeConfig: {"files": ("a",), "out": "o"}}.get(kind, DISTILL)
    with pytest.raises(UsageError) as caught:
        build(kind, **given, **options)
    assert caught.value.message == message
    assert caught.value.hint


def test_what_goes_together_is_taken():
    build(SampleConfig, **SAMPLE, strength=0.3, image="a.png")
    build(SampleConfig, **SAMPLE, nag_scale=1.0, control_scale=1.0, strength=None)  # the defaults, said
    build(SampleConfig, **SAMPLE, nag_scale=5, negative_prompt="red")
    build(DistillConfig, **DISTILL, huber_c=0.1, target_decay=0.5)
    build(DistillConfig, **DISTILL, full=False, init_lora="a", modules="attention")


# What options are called elsewhere: of the published training scripts, those that decide something.

LCM_SCRIPT = """pretrained_teacher_model teacher_revision cache_dir output_dir logging_dir checkpointing_steps
checkpoints_total_limit resume_from_checkpoint train_shards_path_or_url resolution dataloader_num_workers
train_batch_size num_train_epochs max_train_steps max_train_samples scale_lr lr_scheduler lr_warmup_steps
gradient_accumulation_steps use_8bit_adam adam_beta1 adam_beta2 adam_weight_decay adam_epsilon max_grad_norm
proportion_empty_prompts w_min w_max num_ddim_timesteps loss_type lora_rank lora_alpha lora_dropout
lora_target_modules ema_decay mixed_precision allow_tf32 enable_xformers_memory_efficient_attention
validation_steps push_to_hub hub_model_id report_to"""
LORA_SCRIPT = """pretrained_model_name_or_path revision dataset_name image_column caption_column validation_prompt
num_validation_images train_data_dir center_crop random_flip noise_offset snr_gamma prediction_type"""
KOHYA = """network_dim network_alpha network_module network_weights output_name max_train_epochs unet_lr
text_encoder_lr save_every_n_steps save_every_n_epochs optimizer_type caption_extension cache_latents enable_bucket
clip_skip xformers v2 v_parameterization sample_prompts reg_data_dir"""
DRAWING = """num_inference_steps cfg_scale scheduler num_images_per_prompt denoising_strength init_image mask_image
lora_scale torch_dtype outdir W H prompt controlnet_conditioning_scale"""


@pytest.mark.parametrize("kind", [DistillConfig, FinetuneConfig])
@pytest.mark.parametrize("option", [*LCM_SCRIPT.split(), *LORA_SCRIPT.split(), *KOHYA.split()])
def test_options_of_published_scripts_are_answered(kind, option):
    if kind is FinetuneConfig and option in "w_min w_max num_ddim_timesteps loss_type ema_decay":
        return  # of distilling alone
    if option in kind.model_fields:
        return  # it has the same name
    [told] = answers(kind, ["--model", "m", f"--{option}", "512", "--batch-size", "2"]).values()
    assert answers(kind, [f"--{option.replace('_', '-')}=512"]) == {f"--{option.replace('_', '-')}": told}
    for named in re.findall(r"--[a-z0-9-]+", told.removesuffix("distill has --weighting")):
        assert named in {"--lora", *map(option_name, kind.model_fields)}, told


@pytest.mark.parametrize("option", DRAWING.split())
def test_options_of_pipelines_are_answered(option):
    assert option in HERE or any(option in others for others in HERE.values())
    assert list(answers(SampleConfig, [f"--{option}", "4"])) == [f"--{option}"]


def test_answers_name_our_options():
    assert answers(DistillConfig, ["--w_min", "3"]) == {
        "--w_min": "here it is --guidance-scale (a guidance scale is 1 + w)"
    }
    assert answers(SampleConfig, ["--resolution", "5"]) == {"--resolution": "here it is --width (in pixels)"}
    assert answers(SampleConfig, ["-W", "5"]) == {"-W": "here it is --width"}
    assert answers(SampleConfig, ["--prompt", "5"]) == {"--prompt": "here it is PROMPT, without an option"}
    assert answers(SampleConfig, ["--negative_prompt", "-1", "x", "--steps=3", "--stepz"]) == {}


def test_every_field_known_elsewhere_is_a_field():
    kinds = (SampleConfig, CompareConfig, DistillConfig, MergeConfig)
    assert HERE.keys() <= {field for kind in kinds for field in kind.model_fields}
    known = {plain(name) for others in HERE.values() for name in others}
    assert set(map(plain, NOTES)) <= known


def test_spellings():
    assert option_name("train_steps") == "--steps"
    assert option_name("as_json") == "--json"
    assert option_name("guidance_scale_max") == "--guidance-scale-max"
    assert set(DoctorConfig.model_fields) == {"prune", "as_json"}


def test_what_decides_a_run_may_not_change_on_resume():
    fixed = set(DistillConfig.model_fields) - TrainingConfig.may_change
    assert fixed >= {"model", "data", "seed", "rank", "full", "psi", "k", "guidance_scale", "ema"}
    assert TrainingConfig.may_change >= {"out", "train_steps", "resume", "device"}


@pytest.mark.parametrize("name", SECTIONS)
def test_every_option_has_a_section_of_the_help(name):
    kind = getattr(configs, name)
    listed = [field for fields in SECTIONS[name].values() for field in fields]
    arguments = {kind.argument[0]} if kind.argument else set()
    assert len(set(listed)) == len(listed)
    assert kind.model_fields.keys() - arguments <= set(listed), "add it to configs/sections.py"
    every = {
        field
        for other, sections in SECTIONS.items()
        if sections is SECTIONS[name]
        for field in getattr(configs, other).model_fields
    }
    assert set(listed) <= every
