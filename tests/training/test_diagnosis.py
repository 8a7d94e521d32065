"""Each rule fires on a record that was made for it, and none does on a good one."""

import re
from dataclasses import replace

import pytest

from fewstep.lora.recipe import Recipe
from fewstep.training.diagnosis import CAUSES, SIGNS, Record, diagnosed

TRAINING = {"steps": 1000, "batch_size": 16, "samples": 2000}
CONFIG = {"ema": 0.95, "gradient_clip": 1.0, "target": "ema", "drop_captions": 0.0}
RECIPE = Recipe(
    method="lcd", k=20, solver="lcm", teacher_guidance_scale=(8.5, 8.5), prediction_type="epsilon", training=TRAINING
)
STYLE = RECIPE.model_copy(update={"method": "denoising", "k": None, "teacher_guidance_scale": None})
METRICS = [{"step": 10 * i, "loss": 0.05 + 0.1 / i, "gradient_norm": 0.3} for i in range(1, 101)]
QUALITY = [
    {"step": 250 * i, "kid_t_4": kid, "kid_t_error_4": 1e-4, "measure": "kid_t_4", "best": True,
     "sharpness_1": 0.6, "sharpness_4": 0.95, "contrast_4": 0.98, "saturation_4": 1.02}
    for i, kid in enumerate((0.01, 0.004, 0.0031, 0.003), 1)
]  # fmt: skip
CAPTIONS = [f"{size} {thing}" for size in ("small", "large", "round") for thing in ("house", "apple", "river", "tree")]
GOOD = Record(CONFIG, RECIPE, METRICS, QUALITY, CAPTIONS, {"prediction_type": "epsilon"})


def recipe(**changes: object) -> Recipe:
    return RECIPE.model_copy(update=changes)


def training(**changes: object) -> Recipe:
    return recipe(training=TRAINING | changes)


def config(**changes: object) -> dict[str, object]:
    return CONFIG | changes


def preview(**changes: float) -> list[dict[str, object]]:
    return [*QUALITY[:-1], QUALITY[-1] | changes]


def losses(*values: float) -> list[dict[str, float]]:
    return [{"step": i, "loss": value, "gradient_norm": 0.1} for i, value in enumerate(values)]


BAD = [
    ("blurry", {"quality": preview(sharpness_4=0.5)}, "50%"),
    ("pale", {"quality": preview(contrast_4=0.7)}, "70%"),
    ("pale", {"quality": preview(saturation_4=0.6)}, "60%"),
    ("burnt", {"quality": preview(saturation_4=1.4)}, "140%"),
    ("guidance", {"recipe": recipe(teacher_guidance_scale=(15.0, 15.0))}, "15"),
    ("grid", {"recipe": recipe(k=250)}, "4 timesteps"),
    ("grid", {"recipe": recipe(k=1, training=TRAINING | {"steps": 400})}, "1000 timesteps"),
    ("average", {"config": config(ema=0.999)}, "1,000 steps"),
    ("prediction", {"scheduler": {"prediction_type": "v_prediction"}}, "v_prediction"),
    ("prediction", {"scheduler": {"rescale_betas_zero_snr": True}}, "zero signal"),
    ("length", {"recipe": training(steps=300, planned_steps=1000)}, "300 of 1,000"),
    ("length", {"recipe": training(steps=100), "quality": ()}, "100 steps"),
    ("length", {"quality": preview(kid_t_4=0.001)}, "68%"),
    ("rate", {"metrics": [line | {"gradient_norm": 7.0} for line in METRICS]}, "100%"),
    ("rate", {"metrics": losses(*[1.0] * 9, 9.0, *[1.0] * 9)}, "1 times"),
    ("rate", {"config": config(learning_rate=0.03)}, "0.03"),
    ("rate", {"config": config(learning_rate=0.001, full=True)}, "0.001"),
    ("diverged", {"metrics": [*METRICS, METRICS[-1] | {"gradient_norm": 0.0}]}, "vanished"),
    ("diverged", {"metrics": losses(*[1.0] * 10, *(1 + 0.2 * i for i in range(10)))}, "2.4 times"),
    ("data", {"recipe": training(samples=30)}, "30 samples, each seen 533 times"),
    ("data", {"recipe": STYLE.model_copy(update={"training": TRAINING | {"samples": 20}}),
              "config": config(drop_captions=0.1)}, "800 times"),
    ("captions", {"captions": [f"watercolour of a {text}" for text in CAPTIONS]}, "'watercolour'"),
    ("drop_captions", {"config": config(drop_captions=0.8)}, "80%"),
    ("drop_captions", {"recipe": STYLE}, "no caption"),
]  # fmt: skip


def test_a_good_run_has_no_findings() -> None:
    assert diagnosed(GOOD) == []
    assert diagnosed(replace(GOOD, recipe=training(planned_steps=2))) == []  # resumed with fewer steps than it had
    assert diagnosed(replace(GOOD, quality=(), metrics=(), captions=(), scheduler=None)) == []
    assert diagnosed(replace(GOOD, recipe=STYLE, config=config(drop_captions=0.1))) == []


@pytest.mark.parametrize(("rule", "changes", "figure"), BAD)
def test_each_rule_fires_alone_on_its_run(rule: str, changes: dict[str, object], figure: str) -> None:
    [finding] = diagnosed(replace(GOOD, **changes))
    assert finding.rule == rule
    assert figure in finding.figure
    assert all(text.strip() and not text.endswith(".") for text in finding)


def test_a_loss_that_is_only_noisy_has_not_diverged() -> None:
    """The losses of a good run of 40 steps of two pictures."""
    noisy = (0.104, 0.027, 0.055, 0.063, 0.056, 0.06, 0.075, 0.055, 0.024, 0.041,
             0.038, 0.069, 0.111, 0.024, 0.019, 0.028, 0.06, 0.056, 0.083, 0.04)  # fmt: skip
    assert diagnosed(replace(GOOD, metrics=losses(*noisy))) == []


def test_advice_about_pictures_gives_way_to_that_about_their_cause() -> None:
    sign, cause = diagnosed(replace(GOOD, quality=preview(sharpness_4=0.4), config=config(learning_rate=0.1)))
    assert (sign.rule, sign.change, cause.rule) == ("blurry", "begin with what stands below", "rate")


def test_every_rule_has_a_run() -> None:
    fired = {rule for rule in SIGNS + CAUSES for _, changes, _ in BAD if rule(replace(GOOD, **changes)) is not None}
    assert fired == {*SIGNS, *CAUSES}


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.99])
def test_the_average_that_is_advised_is_not_complained_about(decay: float) -> None:
    for steps in (30, 100, 3000):
        record = replace(GOOD, recipe=training(steps=steps), config=config(ema=decay))
        found = next((one for one in diagnosed(record) if one.rule == "average"), None)
        if found is not None:
            advised = float(re.findall(r" ([0-9.]+), or", found.change)[0])
            assert not [
                one for one in diagnosed(replace(record, config=config(ema=advised))) if one.rule == "average"
            ], (decay, steps, advised)
