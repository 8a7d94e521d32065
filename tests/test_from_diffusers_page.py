"""docs/from-diffusers.md: each option of the published scripts has its row, those of ours exist, its commands run."""

import re
import shlex
from pathlib import Path

import pytest

from fewstep.configs import DistillConfig, FinetuneConfig, MergeConfig, option_name

PAGE = (Path(__file__).parents[1] / "docs" / "from-diffusers.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith(("| there", "| ---"))
]
COMMANDS = [
    shlex.split(line)[1:]
    for block in re.findall(r"```\n(.*?)```", PAGE, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("fewstep ")
]
OURS = {option_name(field) for kind in (DistillConfig, FinetuneConfig, MergeConfig) for field in kind.model_fields}

# The options of diffusers' five scripts, in the version of August 2026.
DIFFUSERS = """
adam_beta1 adam_beta2 adam_epsilon adam_weight_decay allow_tf32 cache_dir caption_column cast_teacher_unet
center_crop checkpointing_steps checkpoints_total_limit dataloader_num_workers dataset_config_name dataset_name
ema_decay enable_xformers_memory_efficient_attention encode_batch_size gradient_accumulation_steps
gradient_checkpointing hub_model_id hub_token huber_c image_column interpolation_type learning_rate local_rank
logging_dir lora_alpha lora_dropout lora_rank lora_target_modules loss_type lr_scheduler lr_warmup_steps
max_grad_norm max_train_samples max_train_steps mixed_precision num_ddim_timesteps num_train_epochs output_dir
pretrained_teacher_model pretrained_vae_model_name_or_path proportion_empty_prompts push_to_hub random_flip
report_to resolution resume_from_checkpoint revision scale_lr seed teacher_revision timestep_scaling_factor
tracker_project_name train_batch_size train_data_dir train_shards_path_or_url unet_time_cond_proj_dim
use_8bit_adam use_fix_crop_and_size vae_encode_batch_size validation_steps w_max w_min
"""


def test_every_option_of_diffusers_scripts_has_a_row() -> None:
    found = {name for there, _ in ROWS for name in re.findall(r"--([a-z0-9_]+)", there)}
    assert set(DIFFUSERS.split()) - found == set()


def test_every_option_of_ours_exists_and_what_has_none_says_why() -> None:
    assert len(ROWS) > 100
    for there, here in ROWS:
        named = re.findall(r"--[a-z0-9-]+", here)
        assert set(named) <= OURS, there
        assert named or here.startswith(("left out: ", "the default; ")), there


def test_names_that_the_error_message_knows_are_answered_alike() -> None:
    """What `fewstep distill --lora_rank 64` says is what the page says."""
    from fewstep.configs.elsewhere import answer

    for there, here in ROWS:
        for name in re.findall(r"--([a-z0-9_]+)", there):
            told = answer(DistillConfig, f"--{name}") or ""
            named = re.findall(r"^here it is (--[a-z0-9-]+)", told)
            options = set(re.findall(r"--[a-z0-9-]+", here))
            if named and options and name not in ("revision", "resume_from_checkpoint", "resume"):
                assert named[0] in options, (name, told, here)


CUT = {"--precision": "fp32", "--size": "16", "--batch-size": "2", "--preview-every": "1"}  # for a tiny model on a CPU
OUT_OF_REACH = {"--optimizer": 2, "--tracker": 2, "--push-to-hub": 2, "--steps": 2, "--epochs": 2, "--workers": 2}


def cut(words: list[str], model: Path, data: Path, out: Path) -> list[str]:
    """The command for a tiny model, without what needs a GPU, a package or the hub."""
    values = CUT | {"--model": str(model), "--data": str(data), "--out": str(out)}
    typed, i = [], 0
    while i < len(words):
        if words[i] in OUT_OF_REACH:
            i += OUT_OF_REACH[words[i]]
            continue
        typed.append(words[i])
        if words[i] in values:
            typed.append(values[words[i]])
            i += 1
        i += 1
    return [*typed, "--steps", "1", "--preview-images", "2", "--device", "cpu"]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[words.index("--out") + 1])
def test_the_commands_are_understood_whole(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from fewstep.cli import main
    from fewstep.commands import train
    from fewstep.commands.result import Result

    configs = []
    monkeypatch.setattr(train, words[0], lambda config: configs.append(config) or Result({}, ""))
    assert main(words) == 0
    [config] = configs
    typed = {word for word in words if word.startswith("--")}
    assert {option_name(field) for field in config.model_fields_set} == typed


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[words.index("--out") + 1])
def test_a_run_with_the_published_settings_works(
    words: list[str], tiny_model_folder: Path, tiny_data_folder: Path, tmp_path: Path
) -> None:
    from fewstep.cli import main

    out = tmp_path / "run"
    assert main(cut(words, tiny_model_folder, tiny_data_folder, out)) == 0
    assert (out / "model" if "--full" in words else out / "lora.safetensors").exists()
    assert (out / "README.md").exists()


def test_the_help_says_how_two_values_change() -> None:
    from fewstep.configs import describe

    describe(DistillConfig)
    fields = DistillConfig.model_fields
    assert "num_ddim_timesteps of 50" in str(fields["k"].description)
    assert "w = guidance_scale - 1" in str(fields["guidance_scale"].description)
