"""The protocol of a comparison: everything that its numbers depend on, as data and in words."""

import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fewstep import __version__
from fewstep.configs import CompareConfig
from fewstep.data.prompts import Prompt
from fewstep.errors import number_of
from fewstep.evaluate import best_guidance, first_row
from fewstep.evaluate.measure import DIVERSE_IMAGES, DIVERSE_PROMPTS, Tools, ceiling_of
from fewstep.evaluate.row_pictures import RowPictures
from fewstep.evaluate.teacher import OTHER_NOISE, TeacherSide
from fewstep.io import sha256_bytes
from fewstep.metrics.agreement import Agreement
from fewstep.metrics.frechet import needed
from fewstep.metrics.mind import PROJECTIONS
from fewstep.metrics.networks import EfficientNet, Inception
from fewstep.metrics.weights import LPIPS_FILES

LPIPS_LABEL = "lpips 0.1, alexnet"


def surroundings(model: str, device: torch.device) -> dict[str, Any]:
    """The facts that decide pixels and times, besides those of a row. model: the hash of its files."""
    return {"model_sha256": model, "machine": machine(device), "versions": versions()}


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that draw."""
    packages = ("torch", "diffusers", "transformers")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def machine(device: torch.device) -> str:
    """The processor or GPU and the system, in words."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {platform.system()}"
    threads = torch.get_num_threads()
    return f"{processor()}, {number_of(threads, 'thread')}, {device.type}, {platform.system()}"


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def protocol_of(
    config: CompareConfig,
    around: dict[str, Any],
    size: int,
    source: str,
    prompts: Sequence[Prompt],
    tools: Tools,
    teacher: RowPictures | None,
    agreement: Agreement | None,
    side: TeacherSide | None = None,
) -> dict[str, Any]:
    """The protocol, as in table.json. prompts: of one seed set. agreement: of any row, for its chance.

    teacher: its pictures from the rows' noise. side: its pictures from other noise.
    """
    return {
        "fewstep": __version__,
        "versions": around["versions"],
        "machine": around["machine"],
        "model": {"name": config.model, "sha256": around["model_sha256"]},
        "dtype": config.dtype,
        "size": size,
        "prompts": {"source": source, "count": len(set(prompts)), "sha256": prompts_sha256(prompts)},
        "images": config.images,
        "seed_sets": config.seed_sets,
        "seeds": "image i of seed set k has seed k * images + i, in every row",
        "batch_size": config.batch_size,
        "times": times_of(config.timing_rounds),
        **measured_with(prompts, tools, teacher, agreement),
        "teacher_pictures": side and {"images": len(side.features), "first_seed": OTHER_NOISE, **way_of(side.pictures)},
        "left_out": list(tools.notes),
    }


def times_of(rounds: int) -> str:
    """How the times are measured, in words."""
    if rounds:
        return (
            f"of an image, the median over {rounds} newly drawn batches, in turn with the rows of the same LoRAs and"
            " the first row; times as fast: the first row's time divided by a row's, median over the rounds"
        )
    return "of an image, the median over full batches, after a warm-up"


def measured_with(
    prompts: Sequence[Prompt], tools: Tools, teacher: RowPictures | None, agreement: Agreement | None
) -> dict[str, Any]:
    """What each metric was compared with; None for metrics that were left out."""
    real, texts = tools.real, {prompt.text for prompt in prompts}
    return {
        "networks": networks(tools),
        "reference": real and {"source": real.source, "images": len(real.features), "sha256": real.sha256},
        "teacher": teacher and {**way_of(teacher), "images": sum(batch["images"] for batch in teacher.facts)},
        "diversity": tools.lpips and {"prompts": min(DIVERSE_PROMPTS, len(texts)), "images_each": DIVERSE_IMAGES},
        "agreement": agreement
        and {
            "images": agreement.count,
            "left_out": agreement.left_out,
            "chance": agreement.chance,
            "real_drawings": ceiling_of(prompts, tools.drawings) if tools.drawings else None,
        },
    }


def way_of(pictures: RowPictures) -> dict[str, Any]:
    """How they were drawn."""
    plan = pictures.plan
    return {"solver": plan.solver_name, "steps": plan.steps, "guidance_scale": plan.guidance_scale}


def prompts_sha256(prompts: Sequence[Prompt]) -> str:
    """Hash of the prompts' texts, styles and concepts, in order."""
    return sha256_bytes(*("\t".join(part or "" for part in prompt).encode() + b"\n" for prompt in prompts))


def networks(tools: Tools) -> dict[str, dict[str, str]]:
    """Label (with the resize filter) and hash of the weights, for each network that measured."""
    found = {}
    of_clip = tools.clip.network if tools.clip else None
    for name, network in (("inception", tools.inception), ("efficientnet", tools.efficientnet), ("clip", of_clip)):
        if network:
            found[name] = {"label": network.label, "sha256": network.sha256}
    if tools.lpips:
        found["lpips"] = {"label": LPIPS_LABEL, "sha256": LPIPS_FILES["alex"].sha256}
    return found


def in_words(protocol: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[str]:
    """The protocol in words, one line each, with shortened hashes."""
    p, model, prompts = protocol, protocol["model"], protocol["prompts"]
    sets = f" in each of {p['seed_sets']} seed sets" if p["seed_sets"] > 1 else ""
    versions = ", ".join(f"{name} {value}" for name, value in p["versions"].items())
    lines = [
        f"model: {model['name']} (sha256 {cut(model['sha256'])}), {p['size']} px, {p['dtype']}",
        f"prompts: {prompts['count']} ({prompts['source']}; sha256 {cut(prompts['sha256'])})",
        f"images: {p['images']} a row{sets}; {p['seeds']}",
        "guidance: " + ", ".join(f"{row['row']} {row['guidance_scale']:g}" for row in rows),
        f"times: {p['times']}; batches of {min(p['batch_size'], p['images'] * p['seed_sets'])}; {p['machine']}",
    ]
    if p["reference"]:
        real = p["reference"]
        lines.append(f"reference: {real['images']} images of {real['source']} (sha256 {cut(real['sha256'])})")
    lines.append("NFE: rows through the network per image")
    if any(row["fid"] is not None or row["kid"] is not None for row in rows):
        lines.append("FID, KID: the distance between a row's images, as a set, and the reference's; lower is nearer")
    if any(row["fid_spread"] is not None for row in rows):
        lines.append("FID: mean over the seed sets; spread: the largest of them minus the smallest")
    lines += best_guidance.in_words(p["guidance_search"])
    if p["teacher"]:
        lines.append(_teacher_in_words(p["teacher"]))
    if p.get("teacher_pictures"):
        lines += _teacher_pictures_in_words(p["teacher_pictures"], rows)
    if p["diversity"]:
        d = p["diversity"]
        lines.append(
            f"diversity: mean LPIPS over all pairs of {d['images_each']} images of a prompt, for {d['prompts']} prompts"
        )
    if p["agreement"]:
        lines.append(_agreement_in_words(p["agreement"]))
    if "efficientnet" in p["networks"]:
        lines.append(
            "EfficientNet score: the Inception score's formula with EfficientNet's classes; it cannot be compared with"
            " the Inception score, which needs Inception's classifier, and FID's network has none"
        )
    if any(row["efficientnet_distance"] is not None for row in rows):
        lines.append(
            f"EfficientNet distance: the Fréchet distance of {EfficientNet.dim} features of EfficientNet-Lite0, mean"
            " over the seed sets; it is not a FID and cannot be compared with one; it is for references with fewer than"
            f" the {needed(Inception.dim)} images that FID needs"
        )
    if "clip" in p["networks"]:
        lines.append("CLIP score: mean of 100 cos(image, text); scores of different CLIP models cannot be compared")
    lines += first_row.in_words(rows)
    lines += [f"network: {net['label']} (sha256 {cut(net['sha256'])})" for net in p["networks"].values()]
    lines.append(f"versions: fewstep {p['fewstep']}, {versions}")
    return [*lines, *p["left_out"]]


def _teacher_in_words(teacher: dict[str, Any]) -> str:
    return (
        f"LPIPS to teacher: to {teacher['solver']} at {teacher['steps']} steps and guidance"
        f" {teacher['guidance_scale']:g}, the model without LoRAs, from the same noise, over {teacher['images']}"
        " images; it favours ODE solvers, which aim at exactly that image, and does not measure quality"
    )


def _teacher_pictures_in_words(teacher: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        f"teacher: {teacher['images']} pictures of the same prompts by {teacher['solver']} at {teacher['steps']} steps"
        f" and guidance {teacher['guidance_scale']:g}, the model without LoRAs, from other noise (seeds from"
        f" {teacher['first_seed']})",
        "KID-T: KID of Inception's features to the teacher's pictures, over pairs of different prompts, unbiased; 95 %"
        " interval by the jackknife over groups of prompts, left out of both sides together",
        f"MIND: Monge Inception distance (arXiv 2605.06797) to as many of them, {PROJECTIONS} directions; few pictures"
        " make it too large, so only rows of one table compare",
        "sharpness: the mean variance of a picture's Laplacian over that of the teacher's; interval likewise",
    ]
    if any(row["fid_t"] is not None for row in rows):
        lines.append(
            "FID-T: the Fréchet distance to the teacher's pictures; Patch-FID-T: that of the four quarters of the first"
            " quarter of the pictures, which are as many"
        )
    return lines


def _agreement_in_words(agreement: dict[str, Any]) -> str:
    real = agreement["real_drawings"]
    return (
        f"agreement: the share of {agreement['images']} images whose nearest drawing of another style shows their"
        f" concept; chance {100 * agreement['chance']:.2f} %"
        + ("" if real is None else f", real drawings {100 * real:.1f} %")
    )


def cut(sha256: str) -> str:
    """The first characters of a hash, for people."""
    return sha256[:12]
