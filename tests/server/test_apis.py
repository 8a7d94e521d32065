"""The HTTP APIs: fewstep's own, OpenAI's with its own client, A1111's; errors name the field, nothing names a file."""

import base64
import hashlib
import json
import re
import threading
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
import webuiapi
from fastapi.testclient import TestClient
from PIL import Image

from fewstep import Session
from fewstep.client import Client
from fewstep.configs import Draw
from fewstep.errors import FewstepError, UsageError
from fewstep.server.native import OMITTED, drawing_fields
from tests.server.conftest import file_of, image_of, png

SMALL = {"steps": 1, "width": 64, "height": 64}


def sample(http: TestClient, **body: Any) -> Any:
    return http.post("/v1/sample", json={"prompts": "a cat", **SMALL, **body})


def error(answer: Any) -> dict[str, Any]:
    assert answer.status_code == 400, answer.text
    found: dict[str, Any] = answer.json()["error"]
    return found


# --- /v1/sample ---------------------------------------------------------------------------------------------


def test_pictures_come_with_recipes_that_name_no_file_of_the_machine(http) -> None:
    found = sample(http, count=2, seed=5, loras=["high-contrast:0.5", "lcm"]).json()["pictures"]
    assert [one["recipe"]["seed"] for one in found] == [5, 6]
    assert image_of(found[0]["image"]).size == (64, 64)
    assert [one["file"] for one in found[0]["recipe"]["lora"]] == ["high-contrast", "lcm"]
    assert found[0]["recipe"]["model"] == "emoji"
    assert "/" not in json.dumps(found[0]["recipe"])


def test_one_draw_is_one_picture_everywhere(http, address, fewstep, tmp_path) -> None:
    """In Python, on the command line, over HTTP and by the client. tests/server/test_page.py has the page."""
    with Session(engine="torch", dtype="fp32", device="cpu") as session:
        own = next(session.draw("a cat", seed=3)).image.tobytes()
    done = fewstep("sample", "a cat", seed=3, engine="torch", dtype="fp32", device="cpu", out=tmp_path)
    assert done.code == 0, done.error
    typed = Image.open(next(tmp_path.glob("*.png"))).convert("RGB")
    over_http = image_of(http.post("/v1/sample", json={"prompts": ["a cat"], "seed": 3}).json()["pictures"][0]["image"])
    with Client(address) as client:
        by_client = next(client.draw("a cat", seed=3)).image
    assert {
        hashlib.sha256(one).hexdigest() for one in (own, typed.tobytes(), over_http.tobytes(), by_client.tobytes())
    } == {hashlib.sha256(own).hexdigest()}


def test_an_image_is_answered_where_one_is_accepted(http) -> None:
    body = {"prompts": ["a cat"], "format": "webp", **SMALL}
    answer = http.post("/v1/sample", json=body, headers={"accept": "image/webp"})
    assert answer.headers["content-type"] == "image/webp"
    assert answer.content[8:12] == b"WEBP"
    several = http.post("/v1/sample", json=body | {"count": 2}, headers={"accept": "image/png"})
    assert error(several)["param"] == "count"


def test_a_stream_tells_steps_previews_and_pictures(http) -> None:
    body = {"prompts": ["a cat"], "steps": 3, "previews": True}
    with http.stream("POST", "/v1/sample", json=body, headers={"accept": "text/event-stream"}) as answer:
        text = "".join(answer.iter_text())
    assert re.findall(r"event: (\w+)", text) == ["step"] * 3 + ["picture", "done"]
    steps = [json.loads(one) for one in re.findall(r"event: step\ndata: (.*)", text)]
    assert [one["image"] is not None for one in steps] == [True, True, False]
    assert image_of(steps[0]["image"]).size == (128, 128)


def test_the_body_has_the_fields_of_draw() -> None:
    assert drawing_fields().keys() == Draw.model_fields.keys() - set(OMITTED)


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({"steps": 0}, "steps", "greater than or equal to 1"),
        ({"steps": 101}, "steps", "at most 100"),
        ({"count": 7}, "count", "at most 6"),
        ({"width": 30}, "width", "not a multiple of 8"),
        ({"width": 8000, "height": 8000}, "width", "pixels"),
        ({"prompts": "x" * 5000}, "prompts", "letters"),
        ({"prompts": []}, "prompts", "no prompt"),
        ({"prompts": None}, "prompts", "Input should be"),
        ({"solver": "magic"}, "solver", "Input should be"),
        ({"loras": ["/etc/passwd"]}, "loras", "no LoRA '/etc/passwd'"),
        ({"loras": ["https://example.com/a.safetensors:1"]}, "loras", "on this server"),
        ({"model": "../emoji"}, "model", "no model"),
        ({"image": "/etc/passwd"}, "image", "not base64"),
        ({"image": base64.b64encode(b"no picture").decode()}, "image", "is no picture"),
        ({"outpaint": "9999", "image": base64.b64encode(png()).decode()}, "outpaint", "pixels"),
        ({"outpaint": "x", "image": base64.b64encode(png()).decode()}, "outpaint", "is not pixels"),
        ({"height": 8192, "width": None}, "width", "pixels"),
        ({"controlnet": "x"}, "controlnet", "there is no field controlnet"),
        ({"out": "/tmp"}, "out", "there is no field out"),
        ({"strength": 0.5}, "strength", "needs image"),
        ({"eta": 0.5, "solver": "lcm"}, "eta", ""),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_values_are_400_and_name_their_field(http, body, field, words) -> None:
    found = error(sample(http, **body))
    assert found["param"] == field
    assert words in found["message"]
    assert found["hint"]
    assert "\n" not in found["message"]


@pytest.mark.parametrize(
    ("body", "message"),
    [(b"{", "the body is not JSON"), (b"", "the request has no body"), (b"[]", "the body is not a JSON object")],
)
def test_a_body_that_is_no_json_object_is_named_with_the_header_that_it_needs(http, body, message) -> None:
    for path in ("/v1/sample", "/v1/images/generations", "/sdapi/v1/txt2img"):
        found = error(http.post(path, content=body, headers={"content-type": "application/json"}))
        assert found["message"].startswith(message)
        assert "content-type: application/json" in found["hint"]
    forgotten = error(http.post("/v1/sample", content=b'{"prompts": "a"}', headers={"content-type": "text/plain"}))
    assert forgotten["message"].startswith("the body is not a JSON object")
    assert error(http.post("/v1/sample", json={}))["message"].startswith("prompts is required")


def test_limits_are_said_without_gaps(http) -> None:
    assert error(sample(http, steps=101))["message"] == "steps: 101 (at most 100)"


def test_a_bomb_is_refused_before_it_is_decoded(http) -> None:
    bomb = png((30_000, 30_000), 0, "1")
    found = error(sample(http, image=base64.b64encode(bomb).decode()))
    assert "too many pixels" in found["message"]


def test_a_body_that_is_too_large_is_refused(http) -> None:
    assert (
        http.post("/v1/sample", content=b" " * 33_000_000, headers={"content-type": "application/json"}).status_code
        == 413
    )


def test_what_a_picture_starts_from_is_sent_in_base64(http) -> None:
    start = base64.b64encode(png()).decode()
    plain, data_url = (sample(http, image=image, strength=0.5, steps=2, width=None, height=None).json()["pictures"][0]
                       for image in (start, f"data:image/png;base64,{start}"))  # fmt: skip
    assert plain["image"] == data_url["image"]
    assert plain["recipe"]["image"] == {"sha256": hashlib.sha256(png()).hexdigest()}


def test_the_offer_says_what_may_be_named(http) -> None:
    found = http.get("/v1/offer").json()
    assert found["models"] == ["emoji"]
    assert found["loras"] == ["lcm", "high-contrast", "noto-mono"]
    assert found["plugged"] == [{"name": "lcm", "weight": 1.0}]
    assert found["accelerations"] == ["lcm"]
    assert found["fits"] == {"emoji": found["loras"]}
    assert {"auto", "lcm", "ddim"} < set(found["solvers"])
    assert found["limits"]["count"] == 6


def test_health_and_counts(http) -> None:
    assert http.get("/healthz").json()["status"] == "ok"
    sample(http)
    counts = http.get("/metrics").text
    assert float(re.search(r"\nfewstep_pictures_total (\S+)", counts)[1]) >= 1
    assert 'fewstep_requests_total{route="/v1/sample",status="200"}' in counts


# --- fewstep.Client -----------------------------------------------------------------------------------------


def test_the_client_draws_as_a_session_does_and_tells_what_is_wrong(address) -> None:
    with Client(address) as client:
        found = list(client.draw(["a cat", "a dog"], count=2, seed=1, steps=1, loras=["lcm:0.9"]))
        assert [one.recipe["seed"] for one in found] == [1, 2, 3, 4]
        assert found[0].recipe["lora"][0]["weight"] == 0.9
        started = next(client.draw("a cat", image=Image.new("RGB", (128, 128), "red"), strength=0.5, steps=1))
        assert started.image.size == (128, 128)
        with pytest.raises(FewstepError, match="no LoRA 'x' on this server") as refused:
            next(client.draw("a cat", loras=["x"]))
        assert refused.value.field == "loras"
        with pytest.raises(UsageError, match="steps"):  # before anything is sent
            client.draw("a cat", steps=0)
    with Client("http://127.0.0.1:9") as nobody, pytest.raises(FewstepError, match="does not answer"):
        next(nobody.draw("a cat"))


# --- OpenAI -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0) as found:
        yield found


def test_openai_generates_as_many_different_pictures_as_asked_for(client) -> None:
    found = client.images.generate(model="emoji", prompt="a cat", n=4, size="64x64", output_format="webp",
                                   output_compression=50, extra_body={"num_inference_steps": 1, "seed": 2})  # fmt: skip
    pictures = [image_of(one.b64_json) for one in found.data]
    assert len({picture.tobytes() for picture in pictures}) == 4
    assert {(picture.format, picture.size) for picture in pictures} == {("WEBP", (64, 64))}
    assert (found.size, found.output_format, found.background) == ("64x64", "webp", "opaque")
    assert (found.usage.input_tokens, found.usage.output_tokens, found.usage.total_tokens) == (2, 4, 6)


@pytest.mark.parametrize(("partials", "expected"), [(0, 0), (1, 1), (2, 2), (3, 3)])
def test_openai_streams_real_partial_pictures_and_one_whole(client, partials, expected) -> None:
    events = list(client.images.generate(model="emoji", prompt="a cat", stream=True, partial_images=partials))
    assert [one.type for one in events] == ["image_generation.partial_image"] * expected + [
        "image_generation.completed"
    ]
    assert [one.partial_image_index for one in events[:-1]] == list(range(expected))
    assert len({image_of(one.b64_json).tobytes() for one in events}) == expected + 1
    assert events[-1].usage.output_tokens == 4


def test_openai_edits_a_picture_where_the_mask_is_transparent(client) -> None:
    half = Image.new("RGBA", (128, 128), (0, 0, 0, 255))
    half.paste((0, 0, 0, 0), (0, 0, 64, 128))  # its left is to be drawn
    mask = ("mask.png", file_of(half))
    found = client.images.edit(model="emoji", image=("a.png", png()), mask=mask, prompt="a cat")
    picture = image_of(found.data[0].b64_json)
    assert picture.crop((64, 0, 128, 128)).getcolors() == [(64 * 128, (255, 0, 0))]
    assert len(picture.crop((0, 0, 64, 128)).getcolors(10_000)) > 100
    events = list(client.images.edit(model="emoji", image=png(), prompt="a cat", stream=True, partial_images=1))
    assert [one.type for one in events] == ["image_edit.partial_image", "image_edit.completed"]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"size": "9x"}, "size"),
        ({"size": "30x30"}, "size"),
        ({"output_compression": 101}, "output_compression"),
        ({"background": "transparent"}, "background"),
        ({"background": "transparent", "output_format": "jpeg"}, "background"),
        ({"response_format": "url"}, "response_format"),
        ({"n": 11}, "n"),
        ({"n": 0}, "n"),
        ({"partial_images": 4, "stream": True}, "partial_images"),
        ({"model": "dall-e-3"}, "model"),
        ({"extra_body": {"num_inference_steps": 500}}, "num_inference_steps"),
        ({"extra_body": {"loras": ["../x"]}}, "loras"),
        ({"quality": "best"}, "quality"),
    ],
    ids=str,
)
def test_openai_is_told_which_parameter_is_wrong(client, options, field) -> None:
    with pytest.raises(openai.BadRequestError) as found:
        client.images.generate(**({"model": "emoji", "prompt": "a cat"} | options))
    assert found.value.param == field


def test_openai_lists_models(client) -> None:
    assert [one.id for one in client.models.list()] == ["emoji"]
    assert client.models.retrieve("emoji").id == "emoji"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("x")


def test_quality_decides_on_the_steps(http) -> None:
    rows = {}
    for quality in ("low", "auto", "high"):
        body = {"prompt": "a cat", "quality": quality, "size": "64x64"}
        rows[quality] = http.post("/v1/images/generations", json=body).json()["usage"]["output_tokens"]
    assert rows == {"low": 2, "auto": 4, "high": 8}


# --- A1111 --------------------------------------------------------------------------------------------------


def test_a1111_draws_with_loras_in_the_prompt(http) -> None:
    body = {"prompt": "a cat <lora:high-contrast:0.5> <lora:lcm:1>", "steps": 2, "cfg_scale": 1, "seed": 4,
            "sampler_name": "LCM", "width": 64, "height": 64, "batch_size": 2, "n_iter": 2}  # fmt: skip
    found = http.post("/sdapi/v1/txt2img", json=body).json()
    info = json.loads(found["info"])
    recipe = json.loads(info["infotexts"][0])
    assert len(found["images"]) == 4
    assert info["all_seeds"] == [4, 5, 6, 7]
    assert recipe["prompt"] == "a cat"
    assert [(one["file"], one["weight"]) for one in recipe["lora"]] == [("high-contrast", 0.5), ("lcm", 1.0)]


def test_a1111_draws_from_a_picture_and_a_random_seed(http) -> None:
    start = base64.b64encode(png()).decode()
    body = {"prompt": "a cat", "init_images": [start], "denoising_strength": 0.5, "steps": 2}
    found = http.post("/sdapi/v1/img2img", json=body).json()
    assert image_of(found["images"][0]).size == (128, 128)
    seeds = {json.loads(http.post("/sdapi/v1/txt2img", json={"prompt": "a cat", **SMALL}).json()["info"])["seed"]
             for _ in range(2)}  # fmt: skip
    assert len(seeds) == 2


def test_a1111_refuses_as_a1111_does(http) -> None:
    unknown = http.post("/sdapi/v1/txt2img", json={"prompt": "a cat", "sampler_name": "Magic"})
    assert (unknown.status_code, unknown.json()["detail"]) == (404, "Sampler not found")
    assert unknown.json()["error"]["hint"].startswith("it has LCM, ")
    assert error(http.post("/sdapi/v1/txt2img", json={"prompt": "<lora:../x:1>"}))["param"] == "prompt"
    assert error(http.post("/sdapi/v1/txt2img", json={"prompt": "a", "cfg_scale": 99}))["param"] == "cfg_scale"
    assert error(http.post("/sdapi/v1/options", json={"sd_model_checkpoint": "x"}))["param"] == "sd_model_checkpoint"
    for pictures, message in (([], "0 init_images were sent"), ([""], "0 init_images"), (["$"], "init_images is not")):
        found = error(http.post("/sdapi/v1/img2img", json={"prompt": "a", "init_images": pictures}))
        assert found["param"] == "init_images"
        assert found["message"].startswith(message)


def test_a1111s_usual_sampler_draws_and_fields_that_are_null_have_their_defaults(http) -> None:
    nulls = dict.fromkeys(("negative_prompt", "seed", "cfg_scale", "n_iter", "override_settings", "styles"))
    body = {"prompt": "a cat", "sampler_name": "Euler a", "steps": 2, **SMALL, **nulls}
    found = http.post("/sdapi/v1/txt2img", json=body).json()
    assert json.loads(json.loads(found["info"])["infotexts"][0])["solver"] == "euler-a"


def test_a1111_tells_what_there_is(http) -> None:
    assert [one["model_name"] for one in http.get("/sdapi/v1/sd-models").json()] == ["emoji"]
    assert [one["name"] for one in http.get("/sdapi/v1/loras").json()] == ["lcm", "high-contrast", "noto-mono"]
    assert {one["name"] for one in http.get("/sdapi/v1/samplers").json()} >= {"LCM", "DDIM", "Euler", "DPM++ 2M"}
    assert http.get("/sdapi/v1/schedulers").json()[0]["name"] == "automatic"
    assert http.get("/sdapi/v1/progress").json()["progress"] == 0
    assert http.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == "emoji"
    assert http.post("/sdapi/v1/options", json={"sd_model_checkpoint": "emoji [abc]"}).status_code == 200
    assert http.post("/sdapi/v1/interrupt").status_code == 200


def test_a1111s_own_client_works_as_it_is(address) -> None:
    place = urlsplit(address)
    api = webuiapi.WebUIApi(host=place.hostname, port=place.port)
    how = {"steps": 2, "cfg_scale": 1, "sampler_name": "LCM", "width": 128, "height": 128}
    found = api.txt2img(prompt="a cat <lora:high-contrast:0.6> <lora:lcm:1>", seed=3, batch_size=2, **how)
    assert [image.size for image in found.images] == [(128, 128)] * 2
    assert found.info["all_seeds"] == [3, 4]
    assert api.img2img(images=[found.image], prompt="a cat", denoising_strength=0.6, **how).image.size == (128, 128)
    assert api.util_get_model_names() == ["emoji"]
    api.util_set_model("emoji")
    assert api.util_get_current_model() == "emoji"
    assert [one["name"] for one in api.get_loras()] == ["lcm", "high-contrast", "noto-mono"]


# --- what the API says of itself ------------------------------------------------------------------------------


def test_help_names_fields_and_no_options_of_the_command_line(http) -> None:
    document = http.get("/openapi.json").json()
    fields = document["components"]["schemas"]["SampleBody"]["properties"]
    assert "`negative_prompt`" in fields["nag_scale"]["description"]
    assert "--" not in json.dumps(document)


# --- many at once -------------------------------------------------------------------------------------------


def test_many_clients_at_once_each_get_their_own_picture(address) -> None:
    pictures: dict[int, bytes] = {}

    def ask(seed: int) -> None:
        with Client(address) as client:
            pictures[seed] = next(client.draw("a cat", seed=seed, **SMALL)).image.tobytes()

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(pictures.values())) == 16
