"""The one command that makes everything: its stages, what it hands on, and what it writes about the result."""

from importlib.util import find_spec

import pytest

from fewstep.cli.app import new_app
from fewstep.errors import FewstepError, UsageError
from recipes.emoji import build, measure, ship
from recipes.emoji.captions import STYLES


def test_every_command_line_is_understood():
    for name, commands in build.stages(build.BuildConfig()).items():
        for command in commands:
            if command[:2] == ["-m", "fewstep"]:
                _, bound, _ = new_app().parse_args(command[2:], exit_on_error=False, print_error=False)
                assert bound.arguments["config"].out.name == name or name == "styles"
            else:
                assert find_spec(command[1])


def test_stages_run_in_order_until_the_one_asked_for(monkeypatch):
    seen = []
    monkeypatch.setattr(build.subprocess, "run", lambda command, **_: seen.append(command) or Done(0))
    build.run(build.BuildConfig(until="teacher"))
    assert [command[2].rpartition(".")[2] for command in seen] == [
        "dataset",
        "autoencoder",
        "autoencoder",
        "text",
        "teacher",
    ]


class Done:
    def __init__(self, returncode):
        self.returncode = returncode


def test_a_failing_stage_stops_the_others(monkeypatch):
    monkeypatch.setattr(build.subprocess, "run", lambda command, **_: Done(3))
    with pytest.raises(FewstepError, match="stage kit ended with exit code 3"):
        build.run(build.BuildConfig(only="kit"))


def test_unknown_stages_are_named():
    with pytest.raises(
        UsageError, match="unknown stage tea\n\nhint: known stages: dataset, autoencoder, decoder, text, teacher"
    ):
        build.run(build.BuildConfig(only="tea"))


def test_the_notice_names_every_style_and_licence():
    text = ship.notice()
    for name, style in STYLES.items():
        assert name in text
        assert style.licence in text
        assert style.package in text
    assert set(ship.OWNERS) == set(STYLES)


def line(score, **changes):
    values = {
        "drawn": {"score": score, "error": 0.01, "count": 100},
        "ceiling": {"score": 0.8},
        "share_of_ceiling": score / 0.8,
    }
    asked = {"lora": [], "split": "base", "style": None, "solver": "ddim", "steps": 50, "guidance_scale": 4.0}
    return asked | {"agreement": values} | changes


def test_the_latest_measurement_of_a_setting_counts():
    text = ship.agreement_table([line(0.1), line(0.4), line(0.2, lora=["lcm"], solver="lcm", steps=4)])
    assert "0.400 ± 0.010" in text
    assert "0.100" not in text
    assert text.count("\n| ") == 4
    assert ship.agreement_table([]) == ""


def test_how_a_lora_was_trained_is_told_from_its_beginning_on():
    began = {"method": "tcd", "k": 100, "teacher_guidance_scale": [4.0, 4.0], "training": {"steps": 20, "size": None}}
    training = {"steps": 30, "began_from": began}
    text = ship.training_list({"method": "lcd", "k": 50, "teacher_guidance_scale": [3.0, 7.5], "training": training})
    assert text.splitlines() == [
        "* method tcd, k 100, guidance scale 4, steps 20",
        "* method lcd, k 50, guidance scale 3 to 7.5, steps 30",
    ]


def test_loras_are_called_by_their_run():
    assert measure.label("lcm") == "lcm"
    assert measure.label("/cache/emoji/lcm/lora.safetensors") == "lcm"
    assert measure.label("runs/style.safetensors:0.8") == "style:0.8"
