"""Puts the trained model, its LoRAs and the kit into the package, with cards, a notice and checksums.

    python -m recipes.emoji.ship

It takes the results of the other recipes from ~/.cache/fewstep/emoji. The figures on the cards come from their files.
"""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import safe_open

from fewstep.assets import ACCELERATION, CHECKSUMS, FOLDER, KIT, LICENCE, MODEL, checksums
from fewstep.assets import STYLES as STYLE_LORAS
from fewstep.cli import main_of
from fewstep.configs import Config
from fewstep.errors import FewstepError
from fewstep.evaluate.report import text_table
from fewstep.io import atomic_folder, atomic_path, cache_dir, read_json, write_bytes, write_json
from fewstep.lora.files import load_adapter
from fewstep.lora.recipe import from_metadata, to_metadata
from fewstep.lora.writing import Entry, write_safetensors
from fewstep.session.plan import lay_timesteps
from recipes.emoji.captions import STYLES, main_caption
from recipes.emoji.latents import load_autoencoder
from recipes.emoji.packages import PACKAGES

ROOT = Path(__file__).parents[2]
OWNERS = {
    "fluent-3d": "Microsoft (Fluent Emoji)", "fluent-color": "Microsoft (Fluent Emoji)",
    "fluent-flat": "Microsoft (Fluent Emoji)", "high-contrast": "Microsoft (Fluent Emoji)",
    "noto": "Google (Noto Emoji)", "noto-blob": "Google (Noto Emoji)", "noto-2018": "Google (Noto Emoji)",
    "noto-mono": "Google (Noto Emoji font)", "twemoji": "Twitter, Inc. and other contributors (Twemoji)",
    "emojione": "Ranks.com Inc. (EmojiOne 2)", "emojione-bw": "Ranks.com Inc. (EmojiOne 2)",
    "fxemoji": "Mozilla Foundation (FxEmojis)",
}  # fmt: skip


class ShipConfig(Config):
    """Put the trained assets into the package."""

    source: Path = cache_dir() / "emoji"
    """The folder with the results of the other recipes."""
    out: Path = FOLDER
    """The package's folder of assets."""


def run(config: ShipConfig) -> None:
    """Copy the assets, and write their cards and checksums."""
    source, out = config.source, config.out
    loras = {name: source / name / "lora.safetensors" for name in (ACCELERATION, *STYLE_LORAS)}
    inputs = [
        source / "teacher" / "model",
        source / "decoder" / "vae",
        source / KIT / "reference.safetensors",
        *loras.values(),
    ]
    missing = [path for path in inputs if not path.exists()]
    if missing:
        raise FewstepError(f"{missing[0]} is missing", "run python -m recipes.emoji.build first")
    measurements = read_lines(source / "measurements.jsonl")
    copy_folder(source / "teacher" / "model", out / MODEL)
    load_autoencoder(source / "decoder" / "vae").half().save_pretrained(out / MODEL / "vae")
    for config_file in (out / MODEL).glob("*/config.json"):
        write_json(config_file, without_origin(read_json(config_file, "config")))
    copy_folder(source / KIT, out / KIT)
    for name, path in loras.items():
        copy_lora(path, out / f"{name}.safetensors")
        write_bytes(out / f"{name}.md", lora_card(name, path, measurements).encode())
    write_bytes(out / MODEL / "README.md", model_card(source, measurements).encode())
    write_bytes(ROOT / "NOTICE", notice().encode())
    write_json(out / CHECKSUMS, checksums(out))
    sizes = {name: sum(f.stat().st_size for f in out.rglob("*") if f.is_file() and f.relative_to(out).parts[0] == name)
             for name in sorted({path.relative_to(out).parts[0] for path in out.rglob("*")})}  # fmt: skip
    print("\n".join(f"{size / 1e6:8.2f} MB  {name}" for name, size in sizes.items() if size))


def copy_folder(source: Path, target: Path) -> None:
    """Replace the folder `target` by a copy of `source`."""
    with atomic_folder(target) as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True)


def copy_lora(source: Path, target: Path) -> None:
    """Copy the LoRA. Its metadata names the model that ships as its base, with its licence."""
    with safe_open(source, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    recipe = from_metadata(metadata, str(source))
    if recipe is None:
        raise FewstepError(f"{source} has no recipe", "make it with fewstep")
    shipped = recipe.model_copy(update={"base_model": MODEL, "licence": LICENCE})
    entries = [Entry(name, tuple(x.shape), x.dtype, partial(tensors.__getitem__, name)) for name, x in tensors.items()]
    with atomic_path(target) as temporary:
        write_safetensors(temporary, entries, to_metadata(shipped, int(metadata["ss_network_dim"])))


def without_origin(config: dict[str, Any]) -> dict[str, Any]:
    """A network's config without the entries of diffusers and transformers about its path and their version."""
    return {key: value for key, value in config.items() if key not in ("_name_or_path", "transformers_version")}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The measurements of measure.py, oldest first."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


# --- cards --------------------------------------------------------------------------------------------------


def model_card(source: Path, measurements: Sequence[Mapping[str, Any]]) -> str:
    """The embedded model's README."""
    recipe = read_json(source / "teacher" / "model" / "fewstep.json", "sampling recipe")
    figures = read_json(source / "decoder" / "figures.json", "autoencoder figures")
    return f"""# emoji, the model that ships with fewstep

A text-to-image latent diffusion model in Stable Diffusion's parts, small enough to ship: AutoencoderKL (factor 8,
4 channels), CLIPTextModel with a tokenizer of its own (2,000 entries, 32 tokens), UNet2DConditionModel, Stable
Diffusion 1.5's noise schedule, {recipe["prediction_type"]}. 128 px. It draws emoji in nine styles, named in the prompt
("3d glossy emoji of strawberry", "flat castle", "cat in twitter style") or left to it ("cat").

Made by `recipes/emoji`: 12,051 captioned drawings, {recipe["training"]["drawings_seen"]:,} seen in training, repeats
counted. Sample it with guidance {recipe["guidance_scale"]:g}, or with its LCM-LoRA `lcm` in four steps and none.

## Measured

Autoencoder, on {figures["drawings"]} drawings kept from training: foreground PSNR
{figures["foreground_psnr_db"]:.2f} dB, PSNR {figures["psnr_db"]:.2f} dB, LPIPS {figures["lpips"]:.3f}; FID of all
{figures["rfid_drawings"]} against their reconstructions {figures["rfid"]:.1f} (few: it compares only with as many).

Agreement: the share of pictures whose nearest real drawing in another style shows the concept that was prompted, among
1,644, by whitened EfficientNet-Lite0 features; the ceiling is the real drawings of the same pairs.

{agreement_table([line for line in measurements if line["split"] != "style"])}

## Limits

It knows emoji and nothing else; words it does not know give something emoji-like. It draws no text and does not count.
Most well-known things come out, in every style and in a colour that is named ("a happy red robot", "purple dog"); rare
ones, as the agreement says, and words that name no emoji ("green car", which is an automobile, "a bunch of flowers")
often do not. The longer it trains the more it draws; `recipes/emoji/README.md` says how to go on.

## Licence

The weights are Apache-2.0. They were trained on drawings under the licences in NOTICE.
"""


def lora_card(name: str, path: Path, measurements: Sequence[Mapping[str, Any]]) -> str:
    """The README of one LoRA."""
    adapter, recipe = load_adapter(path, {})
    if recipe is None:
        raise FewstepError(f"{path} has no recipe", "make it with fewstep")
    ranks = sorted({update.rank for update in adapter.modules.values()})
    what = (
        "The acceleration vector of the embedded model, an LCM-LoRA made by `fewstep distill`: four steps, no guidance."
        f" In diffusers, give LCMScheduler.from_config original_inference_steps={1000 // (recipe.k or 20)}, and the"
        f" pipeline timesteps={lay_timesteps('lcm', 4, recipe.grid or 'lcm', recipe.k or 20, 1000)}."
        if recipe.accelerates
        else f"A style LoRA of the embedded model, made by `fewstep finetune` on drawings it had never seen"
        f' ({OWNERS[name]}, {STYLES[name].licence}). Prompt: "{main_caption(name, "castle")}".'
    )
    mine = [line for line in measurements if any(lora.split(":")[0] == name for lora in line["lora"])]
    return f"""# {name}

{what}

Rank {", ".join(map(str, ranks))}, {adapter.parameters():,} parameters, {path.stat().st_size / 1e6:.2f} MB, in the
layout of the original LCM-LoRA files.

{training_list(recipe.model_dump(mode="json"))}
{agreement_table(mine)}
Licence: Apache-2.0.
"""


def training_list(recipe: Mapping[str, Any] | None) -> str:
    """The training as a Markdown list. The LoRA from which it began comes first."""
    if not recipe:
        return ""
    training = dict(recipe["training"])
    earlier = training_list(training.pop("began_from", None))
    how = {"method": recipe["method"], "k": recipe["k"], "guidance scale": recipe["teacher_guidance_scale"]} | training
    words = ", ".join(f"{key} {worded(value)}" for key, value in how.items() if value is not None)
    return f"{earlier}\n* {words}".lstrip("\n")


def worded(value: Any) -> str:
    """A setting in words. A range of one number is that number."""
    if isinstance(value, list):
        return " to ".join(f"{number:g}" for number in dict.fromkeys(value))
    return str(value)


def agreement_table(measurements: Sequence[Mapping[str, Any]]) -> str:
    """The latest measurement of every setting, as Markdown; empty when there is none."""
    latest = {(str(x["lora"]), x["split"], x["style"], x["solver"], x["steps"], x["guidance_scale"]): x
              for x in measurements}  # fmt: skip
    columns = ("pairs", "pictures", "LoRA", "solver", "steps", "guidance", "agreement", "ceiling", "share")
    rows = []
    for line in latest.values():
        result, limit = line["agreement"]["drawn"], line["agreement"]["ceiling"]
        asked = [line["style"] or line["split"], str(result["count"]), " + ".join(line["lora"]) or "-"]
        how = [line["solver"], str(line["steps"]), f"{line['guidance_scale']:g}"]
        score = f"{result['score']:.3f} ± {result['error']:.3f}"
        rows.append([*asked, *how, score, f"{limit['score']:.3f}", f"{line['agreement']['share_of_ceiling']:.2f}"])
    return "\n" + text_table(columns, rows) + "\n" if rows else ""


def notice() -> str:
    """The drawings' owners and licences."""
    packages = {style: f"{STYLES[style].package} {PACKAGES[STYLES[style].package][0]}" for style in STYLES}
    rows = [[style, OWNERS[style], STYLES[style].licence, packages[style]] for style in STYLES]
    kept_out = ", ".join(style for style in STYLES if STYLES[style].split == "style")
    return f"""fewstep
Apache License 2.0, see LICENSE.

The embedded model and LoRAs (src/fewstep/assets) were trained on the drawings below, and src/fewstep/assets/kit holds
a few hundred of them, scaled to 128 px on white and compressed; its metadata.jsonl names the style of each. The styles
{kept_out} are not in the model itself; the style LoRAs learnt the first two.

{text_table(("style", "owner", "licence", "npm package"), rows)}

Licence texts: MIT https://opensource.org/license/mit, Apache-2.0 https://www.apache.org/licenses/LICENSE-2.0,
CC-BY-4.0 https://creativecommons.org/licenses/by/4.0/, OFL-1.1 https://openfontlicense.org.

Concept names and tags: emojibase-data {PACKAGES["emojibase-data"][0]} (MIT, Miles Johnson).

The merges of CLIP's tokenizer (src/fewstep/assets/clip): MIT, OpenAI.
"""


if __name__ == "__main__":
    sys.exit(main_of(ShipConfig, run))
