"""Results go to a stand-in hub with their card, and are sampled from there; refusals come before the training."""

import re
from types import SimpleNamespace

import diffusers
import pytest
from huggingface_hub import metadata_load
from PIL import Image

from fewstep.configs import FinetuneConfig, build
from fewstep.errors import FewstepError
from fewstep.hub.licences import licence_of
from fewstep.hub.upload import make_repository, upload
from fewstep.lora.recipe import Recipe
from fewstep.training.card import card, front_matter
from tests.hub.stand_in import StandIn

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # huggingface_hub's, about httpx
TINY = ["--rank", "2", "--batch-size", "2", "--steps", "1", "--device", "cpu"]
PLACE = "someone/few-steps"


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")


def test_a_result_is_pushed_with_its_card_and_drawn_from_there(
    fewstep, hub: StandIn, token, tiny_model_folder, tiny_data_folder, tmp_path
):
    out = tmp_path / "run"
    done = fewstep("distill", *TINY, model=tiny_model_folder, data=tiny_data_folder, out=out, push_to_hub=PLACE,
                   preview_every=1, preview_images=2)  # fmt: skip
    assert done.code == 0, done.err
    assert f"note: uploaded to {hub.endpoint}/{PLACE}/commit/" in done.err
    assert hub.made[PLACE].get("private") or hub.made[PLACE]["visibility"] == "private"
    files = hub.repositories[PLACE].files
    assert files.keys() == {"lora.safetensors", "README.md", "loss.png", "quality.png", "previews/step-00000001.png"}
    assert all(content == (out / name).read_bytes() for name, content in files.items())
    assert {one.token for one in hub.asked if one.method == "POST"} == {"Bearer hf_secret"}
    assert str(tmp_path) not in files["README.md"].decode()
    done = fewstep("sample", "a cat", "--device", "cpu", model=tiny_model_folder, lora=PLACE, out=tmp_path / "images")
    assert done.code == 0, done.err


def test_what_the_hub_refuses_is_refused_before_anything_is_read(
    fewstep, hub: StandIn, tiny_model_folder, tiny_data_folder, tmp_path
):
    hub.refusals["other/name"] = 403, ""
    common = {"model": tiny_model_folder, "data": tiny_data_folder, "out": tmp_path / "run"}
    done = fewstep("finetune", *TINY, push_to_hub="other/name", **common)
    assert done.error == "the hub does not let you write to other/name (403)"
    assert "hf auth login" in done.hint
    done = fewstep("finetune", *TINY, push_to_hub="no--name//x", **common)
    assert done.error == "--push-to-hub no--name//x cannot be a name on the hub"
    assert not (tmp_path / "run").exists()


def test_a_connection_that_breaks_leaves_the_result_too(monkeypatch, hub: StandIn, token, tmp_path):
    make_repository(PLACE)
    monkeypatch.setattr("huggingface_hub._commit_api.lfs_upload", broken)
    (tmp_path / "lora.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(FewstepError, match=r"^cannot reach the hub at http:"):
        upload(PLACE, {"lora.safetensors": tmp_path / "lora.safetensors"})


def broken(**_: object) -> None:
    raise ConnectionResetError("broken")


def test_a_refused_upload_leaves_the_result(
    fewstep, hub: StandIn, token, tiny_model_folder, tiny_data_folder, tmp_path
):
    common = {"model": tiny_model_folder, "data": tiny_data_folder, "out": tmp_path / "run", "push_to_hub": PLACE}
    from fewstep.commands import train

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "make_repository", lambda name: hub.refusals.update({name: (401, "")}))
        done = fewstep("finetune", *TINY, **common)
    assert done.code == 1
    assert re.match(
        rf"the result is in .*lora.safetensors, but was not uploaded: .*write to {PLACE} \(401\)", done.error
    )
    assert done.hint.endswith("then run again with --resume")
    assert (tmp_path / "run" / "README.md").exists()
    hub.refusals.clear()
    done = fewstep("finetune", *TINY, "--resume", **common)
    assert done.code == 0, done.err
    assert "lora.safetensors" in hub.repositories[PLACE].files


def config_of(**options: object) -> FinetuneConfig:
    return build(FinetuneConfig, data="d", out="runs/papercut", **options)


def test_the_card_names_base_licence_and_how_to_draw(tmp_path):
    recipe = Recipe(method="lcd", solver="lcm", steps=4, guidance_scale=1.0, base_model="sd15", licence="Apache-2.0",
                    training={"steps": 7, "synthetic": {"solver": "x"}})  # fmt: skip
    text = card(config_of(model="sd15", push_to_hub=PLACE), recipe, "a cat")
    (tmp_path / "README.md").write_text(text)
    found = metadata_load(tmp_path / "README.md")
    assert found["license"] == "apache-2.0"
    assert found["base_model"] == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert {"lora", "lcd"} < set(found["tags"])
    assert licence_of(tmp_path) == "Apache-2.0"
    assert f'fewstep sample "a cat" --model {found["base_model"]} --lora {PLACE}' in text
    assert "| steps | 7 |" in text
    other = front_matter(config_of(model="emoji"), recipe.model_copy(update={"licence": "Sea-1.0"}))
    assert 'license: "other"' in other
    assert 'license_name: "Sea-1.0"' in other


@pytest.mark.parametrize(("solver", "options"), [("lcm", {}), ("tcd", {}), ("lcm", {"full": True}), ("auto", {})])
def test_the_cards_program_runs(solver, options, monkeypatch):
    """On a pipeline that records what is asked of it."""
    method = "denoising" if solver == "auto" else "lcd"
    recipe = Recipe(method=method, solver=solver, steps=4, guidance_scale=1.0, base_model="sd15")
    [code] = re.findall(r"```python\n(.*?)```", card(config_of(model="sd15", **options), recipe, "a 'cat'"), re.DOTALL)
    calls: dict[str, object] = {}

    class Pipe:
        scheduler = SimpleNamespace(config={"num_train_timesteps": 1000})

        def to(self, device: str) -> "Pipe":
            return self

        def load_lora_weights(self, place: str, weight_name: str) -> None:
            calls["lora"] = place, weight_name

        def __call__(self, prompt: str, **values: object) -> SimpleNamespace:
            calls.update(values, prompt=prompt, scheduler=type(self.scheduler).__name__)
            return SimpleNamespace(images=[Image.new("RGB", (1, 1))])

    def from_pretrained(place: str, torch_dtype: object) -> Pipe:
        calls["place"] = place
        return Pipe()

    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", from_pretrained)
    exec(compile(code, "card", "exec"), {})
    assert calls["prompt"] == "a 'cat'"
    assert calls["place"] == ("model" if options else "stable-diffusion-v1-5/stable-diffusion-v1-5")
    assert calls.get("lora") == (None if options else (".", "lora.safetensors"))
    if solver != "auto":
        assert (calls["num_inference_steps"], calls["guidance_scale"]) == (4, 1.0)
        assert str(calls["scheduler"]) == f"{solver.upper()}Scheduler"
