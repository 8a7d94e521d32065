"""A session: opened once; LoRAs change from W0, to the bit; pictures are those of a fresh one."""

import random
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch

import fewstep
from fewstep.configs import Draw, DrawOptions, Where, WhereOptions, build
from fewstep.errors import FewstepError, UsageError
from fewstep.events import Event, Note, Preview, Progress
from fewstep.lora.layers import initial
from fewstep.lora.low_rank import Adapter, LowRank
from fewstep.lora.recipe import Recipe
from fewstep.lora.writing import save_adapter
from fewstep.session import Session
from fewstep.session import session as module
from tests.sessions import session
from tests.tiny import tiny_images


@pytest.fixture(scope="module")
def loras(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A LoRA of the whole network, one of its text encoder too, and one of a few layers."""
    folder = tmp_path_factory.mktemp("loras")
    with session(tiny_model_folder) as opened:
        shapes = dict(opened.engine.shapes)
    parts = {
        "unet": {name: shape for name, shape in shapes.items() if not name.startswith("text")},
        "all": shapes,
        "few": {name: shape for name, shape in shapes.items() if "mid_block" in name},
    }
    for seed, (name, part) in enumerate(parts.items()):
        torch.manual_seed(seed)
        updates = {n: LowRank(u.A, torch.randn_like(u.B) * 0.1) for n, u in initial(part, 2, seed).items()}
        save_adapter(
            folder / f"{name}.safetensors", Adapter(updates), Recipe(method="denoising"), torch.float32, "kohya"
        )
    return [str(folder / f"{name}.safetensors") for name in parts]


def weights(opened: Session) -> dict[str, torch.Tensor]:
    """A copy of every weight of the networks."""
    model: Any = opened.engine.model  # type: ignore[attr-defined]
    networks = {"unet": model.unet, "text": model.text_encoder}
    return {f"{part}.{name}": x.clone() for part, net in networks.items() for name, x in net.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether all weights are equal, to the bit."""
    return all(torch.equal(a[name], b[name]) for name in a.keys() | b.keys())


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_after_a_hundred_changes_the_weights_are_those_of_a_fresh_session(tiny_model_folder, loras, dtype):
    draws = random.Random(0)
    with session(tiny_model_folder, dtype=dtype) as opened:
        bare = weights(opened)
        for _ in range(100):
            mix = [f"{lora}:{draws.uniform(-1, 1.5):.2f}" for lora in draws.sample(loras, draws.randint(0, 3))]
            opened.plug(mix)
        opened.plug([f"{loras[0]}:0.7", loras[1]])
        with session(tiny_model_folder, [f"{loras[0]}:0.7", loras[1]], dtype=dtype) as fresh:
            assert same(weights(opened), weights(fresh))
        assert not same(weights(opened), bare)
        opened.plug([])
        assert same(weights(opened), bare)


def test_the_sum_is_exact(tiny_model_folder, loras):
    with session(tiny_model_folder) as opened:
        layers = opened.engine.model.layers()  # type: ignore[attr-defined]
        before = {name: layer.weight.clone().double() for name, layer in layers.items()}
        opened.plug([f"{loras[0]}:0.5", f"{loras[1]}:-2"])
        terms = [one.term for one in opened._plugged]
        for name, layer in layers.items():
            wanted = before[name]
            for weight, adapter in terms:
                if name in adapter.modules:
                    A, B = (x.double() for x in adapter.modules[name])
                    wanted = wanted + weight(name) * LowRank(A, B).delta()  # type: ignore[operator]
            torch.testing.assert_close(layer.weight.double(), wanted, rtol=0, atol=1e-6)


def test_within_the_block_others_are_plugged_in(tiny_model_folder, loras):
    with session(tiny_model_folder, [loras[0]]) as opened:
        before = weights(opened)
        with opened.plugged(f"{loras[2]}:0.5") as inside:
            assert [lora["weight"] for lora in inside.loras] == [0.5]
            assert not same(weights(opened), before)
        assert same(weights(opened), before)
        assert [lora["file"] for lora in opened.loras] == [loras[0]]


def test_a_lora_that_stands_alone_is_one(tiny_model_folder, loras):
    with session(tiny_model_folder, loras[0]) as opened:
        assert [lora["file"] for lora in opened.loras] == [loras[0]]
        opened.plug(f"{loras[1]}:0.5")
        assert [(lora["file"], lora["weight"]) for lora in opened.loras] == [(loras[1], 0.5)]


def test_a_lora_that_does_not_load_leaves_the_session_as_it_was(tiny_model_folder, loras, tmp_path):
    bad = {"missing": tmp_path / "none.safetensors", "damaged": tmp_path / "damaged.safetensors"}
    data = bytearray(Path(loras[1]).read_bytes())
    data[-4:] = torch.tensor(float("nan")).numpy().tobytes()  # the last value of the last tensor
    bad["damaged"].write_bytes(data)
    with session(tiny_model_folder, [loras[0]]) as opened:
        before, plugged = weights(opened), opened.loras
        for path in bad.values():
            with pytest.raises(FewstepError, match=path.name):
                opened.plug([loras[2], str(path)])
            assert same(weights(opened), before)
            assert opened.loras == plugged


def test_layers_touched_for_the_first_time_are_as_they_were_after_a_failure(tiny_model_folder, loras, tmp_path):
    data = bytearray(Path(loras[0]).read_bytes())
    data[-4:] = torch.tensor(float("nan")).numpy().tobytes()
    (tmp_path / "damaged.safetensors").write_bytes(data)
    with session(tiny_model_folder) as opened:
        before = weights(opened)
        with pytest.raises(FewstepError, match="damaged"):
            opened.plug([loras[2], loras[1], str(tmp_path / "damaged.safetensors")])
        assert same(weights(opened), before)


def test_where_there_is_no_file_the_touched_layers_are_kept(tiny_model_folder, loras, monkeypatch):
    from fewstep.models import plugging

    with session(tiny_model_folder) as opened:
        folding = plugging.Folding(opened.engine.model.layers())  # type: ignore[attr-defined]
        before = weights(opened)
        few = opened._shelf.take([loras[2]])
        folding.plug([one.term for one in few])
        assert set(folding._kept) == set(few[0].lora.adapter.modules)
        folding.plug([])
        assert same(weights(opened), before)


def test_layers_whose_sum_stays_are_not_touched(tiny_model_folder, loras, monkeypatch):
    from fewstep.models import plugging

    written: list[int] = []
    real = plugging.write_sum
    monkeypatch.setattr(plugging, "write_sum", lambda *given: (written.append(1), real(*given))[1])
    with session(tiny_model_folder, [loras[0], loras[2]]) as opened:
        few = len(opened._plugged[1].lora.adapter.modules)
        written.clear()
        opened.plug([loras[0], f"{loras[2]}:0.5"])
        assert len(written) == few
        opened.plug([loras[0], f"{loras[2]}:0.5"])
        assert len(written) == few


def test_pictures_come_with_events_and_previews(tiny_model_folder):
    events: list[Event] = []
    with session(tiny_model_folder, sink=events.append) as opened:
        drawn = list(opened.draw(["a cat", "a dog"], steps=3, solver="ddim", guidance_scale=1, batch_size=1, seed=5))
        steps = [event for event in events if isinstance(event, Progress) and event.unit == "step"]
        assert [(event.done, event.total) for event in steps] == [(i, 6) for i in range(1, 7)]
        previews = [event for event in events if isinstance(event, Preview)]
        assert [(event.seeds, event.step, event.steps) for event in previews[:3]] == [((5,), i, 3) for i in (1, 2, 3)]
        (last,) = previews[2].images()
        assert last.size == drawn[0].image.size
        list(opened.draw("a cat", steps=1, solver="lcm"))
    assert any(isinstance(event, Note) and "acceleration" in event.text for event in events)


def test_what_is_wrong_is_said_before_anything_is_drawn(tiny_model_folder):
    with session(tiny_model_folder) as opened:
        with pytest.raises(UsageError, match="stpes"):
            opened.draw("a cat", stpes=4)  # type: ignore[call-arg]
        with pytest.raises(UsageError, match="steps"):
            opened.draw("a cat", steps=0)
        with pytest.raises(FewstepError, match="unreadable image"):
            opened.draw("a cat", image=b"no picture")
        with pytest.raises(UsageError, match=r"^image photo\.png is a name, not a picture\n\nhint: open it"):
            opened.draw("a cat", image="photo.png")  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=r"^prompts 5: "):
            opened.draw(5)  # type: ignore[arg-type]
    with pytest.raises(FewstepError, match="closed"):
        opened.draw("a cat")
    with pytest.raises(UsageError, match="engine"):
        Session(str(tiny_model_folder), engine="steam")
    with pytest.raises(UsageError, match="dtype"):
        Session(str(tiny_model_folder), dtype="fp64")
    with pytest.raises(UsageError, match="colour"):
        fewstep.sample("a cat", colour="red")  # type: ignore[call-arg]


def test_loras_do_not_change_under_a_picture(tiny_model_folder, loras):
    with session(tiny_model_folder) as opened:
        drawing = opened.draw(["a cat", "a dog"], steps=1, batch_size=1)
        next(drawing)
        opened.plug([loras[0]])
        with pytest.raises(FewstepError, match="other LoRAs"):
            next(drawing)


def test_prompts_are_embedded_once(tiny_model_folder, loras, monkeypatch):
    """Until LoRAs change, which may be of the text encoder; and only those that the pictures depend on."""
    embedded = []
    with session(tiny_model_folder) as opened:
        embed = opened.engine.embed
        monkeypatch.setattr(opened.engine, "embed", lambda texts, *size: embedded.extend(texts) or embed(texts, *size))

        def drawn(*prompts, **options):
            del embedded[:]
            pixels = [picture.pixels for picture in opened.draw(list(prompts), **({"steps": 1} | options))]
            return pixels, list(embedded)

        first, texts = drawn("a cat", "a dog", "a cat", guidance_scale=1)
        assert texts == ["a cat", "a dog"]
        again, texts = drawn("a cat", "a dog", "a cat", guidance_scale=1)
        assert texts == []
        assert all(map(torch.equal, first, again))
        first, texts = drawn("a cat", guidance_scale=1)
        assert texts == []
        assert drawn("a cat", guidance_scale=3)[1] == [""]
        assert drawn("a cat", negative_prompt="red", guidance_scale=1)[1] == []
        assert drawn("a cat", negative_prompt="red", guidance_scale=1, nag_scale=3)[1] == ["red"]
        assert drawn("a cat", width=20, guidance_scale=1)[1] == ["a cat"]
        with opened.plugged(loras[1]):
            other, texts = drawn("a cat", guidance_scale=1)
            assert texts == ["a cat"]
            assert not torch.equal(other[0], first[0])
        again, texts = drawn("a cat", guidance_scale=1)
        assert texts == ["a cat"]
        assert torch.equal(again[0], first[0])
        opened.plug([loras[1]])
        again, texts = drawn("a cat", guidance_scale=1)
        assert torch.equal(again[0], other[0])


def test_a_session_remembers_so_many_texts(tiny_model_folder, monkeypatch):
    monkeypatch.setattr(module, "TEXTS", 2)
    with session(tiny_model_folder) as opened:
        list(opened.draw(["a", "b", "a", "c"], steps=1, guidance_scale=1))
        assert [text for text, *_ in opened._embedded] == ["b", "c"]
        list(opened.draw(["b"], steps=1, guidance_scale=1))
        assert [text for text, *_ in opened._embedded] == ["c", "b"]


def test_a_picture_to_start_from_is_bytes_or_an_image(tiny_model_folder, tmp_path):
    folder = tiny_images(tmp_path / "images", 1)
    path = next(folder.glob("*.png"))
    with session(tiny_model_folder) as opened:
        from PIL import Image

        given = (path.read_bytes(), Image.open(path))
        first, second = (next(opened.draw("a cat", image=one, strength=0.5, steps=2)) for one in given)
    assert torch.equal(first.pixels, second.pixels)


def test_the_keywords_are_the_fields_of_draw_and_where():
    assert get_type_hints(DrawOptions, localns={"Image": Any}).keys() == Draw.model_fields.keys() - {"prompts"}
    assert get_type_hints(WhereOptions).keys() == Where.model_fields.keys() - {"model", "loras"}


def test_configs_are_put_together_from_where_and_draw():
    from fewstep.configs import SampleConfig

    assert SampleConfig.model_fields.keys() >= Where.model_fields.keys() | Draw.model_fields.keys()
    config = build(SampleConfig, prompts=("a cat",), model="m", loras=("x",), steps=3)
    assert config.where == build(Where, model="m", loras=("x",))
    assert config.draw(Path.read_bytes) == build(Draw, prompts=("a cat",), steps=3)
