"""Getting models from a stand-in hub: what comes, what is resumed, what is refused, what works offline."""

import errno
import json
import re
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from fewstep.errors import FewstepError, Interrupted
from fewstep.hub import resolved
from fewstep.hub.resolve import fetched, reachable
from fewstep.models.load import load_model
from fewstep.session import Session
from tests.hub.stand_in import BROKEN, COMMIT, Repository, StandIn, repository_of

LORA = b"lora" * 2000
OTHER_COMMIT = "f" * 40
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
GATED = f"accept it at {{page}}, then {LOG_IN}"
NAME_ONE = "name one as owner/name/FILE"
GONE = "runwayml/stable-diffusion-v1-5"
LONG = "tiny/" + "x" * 100
NOT_SHOWN = "the hub does not show tiny/style (401): it is private or gated, or does not exist"


@pytest.fixture
def model(hub: StandIn, tiny_model_folder: Path) -> Repository:
    """A tiny model on the hub, with files beside it that are of no use."""
    repository = repository_of(tiny_model_folder)
    weights = repository.files["unet/diffusion_pytorch_model.safetensors"]
    repository.files |= {
        "README.md": b"---\nlicense: openrail++\n---\n# Tiny\n",
        "unet/diffusion_pytorch_model.fp16.safetensors": weights,
        "unet/diffusion_pytorch_model.non_ema.safetensors": weights,
        "unet/diffusion_pytorch_model.bin": b"pickle",
        "unet/code.py": b"print('no')",
        "vae_decoder/model.safetensors": b"no part",
        "whole.safetensors": b"the same in one file",
        "picture.png": b"png",
    }
    hub.repositories["tiny/model"] = repository
    return repository


@pytest.fixture
def lora(hub: StandIn) -> Repository:
    repository = Repository({"style.safetensors": LORA, "README.md": b"a style", "pickle.bin": b"pickle"})
    hub.repositories["tiny/style"] = repository
    return repository


def refusal(name: str) -> FewstepError:
    with pytest.raises(FewstepError) as caught:
        resolved(name)
    assert "\n" not in caught.value.message
    assert "\n" not in caught.value.hint
    return caught.value


def test_a_model_comes_with_what_is_needed_and_is_loaded(hub, model, tiny_model_folder, tmp_path):
    folder = resolved("tiny/model")
    assert folder == tmp_path / "cache" / "models--tiny--model" / "snapshots" / COMMIT
    came = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    useless = re.compile(r"fp16|non_ema|\.bin|\.py|vae_decoder|whole|picture|tokenizer-files")
    assert came == {name for name in model.files if not useless.search(name)}
    assert load_model("tiny/model").unet_sha256() == load_model(str(tiny_model_folder)).unet_sha256()


@pytest.mark.parametrize("at_the_top", [False, True], ids=["in folders", "at the top"])
def test_a_model_in_pixel_space_comes(hub, tiny_pixels_folder: Path, at_the_top: bool, monkeypatch):
    """Also from a repository with all files at its top, as those of DDPM's authors; offline it is found again."""
    files = repository_of(tiny_pixels_folder).files
    if at_the_top:
        files = {name.rpartition("/")[2]: content for name, content in files.items()}
    hub.repositories["tiny/pixels"] = Repository(files | {"README.md": b"# Pixels", "a.bin": b"pickle"})
    folder = resolved("tiny/pixels")
    came = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert came == {*files, "README.md"}
    with Session("tiny/pixels", device="cpu") as session:  # on the engine auto, which must be torch
        assert not session.facts.takes_text
    model = load_model("tiny/pixels")
    assert model.unet_sha256() == load_model(str(tiny_pixels_folder)).unet_sha256()
    fetched.cache_clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolved("tiny/pixels") == folder


def test_fp16_weights_come_when_asked_for_and_where_there_are_some(hub, model):
    folder = resolved("tiny/model", half=True)
    assert [path.name for path in (folder / "unet").glob("*.safetensors")] == [
        "diffusion_pytorch_model.fp16.safetensors"
    ]
    assert [path.name for path in (folder / "vae").glob("*.safetensors")] == ["diffusion_pytorch_model.safetensors"]


def test_what_is_there_is_not_sent_for_again_and_what_is_new_is(hub, model):
    resolved("tiny/model")
    hub.asked.clear()
    fetched.cache_clear()
    assert resolved("tiny/model").name == COMMIT
    assert [asked.path for asked in hub.asked] == ["/api/models/tiny/model/revision/main"]
    model.commit = OTHER_COMMIT
    model.files["scheduler/scheduler_config.json"] += b"\n"
    fetched.cache_clear()
    assert resolved("tiny/model").name == OTHER_COMMIT
    assert hub.fetched() == []  # the large files are the same


def test_a_pinned_revision_that_is_there_asks_nothing(hub, model):
    resolved(f"tiny/model@{COMMIT}")
    hub.asked.clear()
    fetched.cache_clear()
    assert resolved(f"tiny/model@{COMMIT}").name == COMMIT
    assert hub.asked == []


@pytest.mark.parametrize(
    "name", ["tiny/style", "tiny/style/style.safetensors", "tiny/style@main", "tiny/style/style.safetensors@main"]
)
def test_a_single_file_is_meant_by_its_repository_or_by_its_name(hub, lora, name):
    file = resolved(name)
    assert (file.name, file.read_bytes()) == ("style.safetensors", LORA)
    assert not (file.parent / "pickle.bin").exists()


def test_folders_of_peft_and_of_a_network_come_whole(hub):
    peft = {"adapter_config.json": b"{}", "adapter_model.safetensors": LORA, "optimizer.bin": b""}
    network = {"config.json": b"{}", "diffusion_pytorch_model.safetensors": LORA, "images/a.png": b""}
    hub.repositories |= {"tiny/peft": Repository(peft), "tiny/network": Repository(network)}
    assert {path.name for path in resolved("tiny/peft").iterdir()} == set(peft) - {"optimizer.bin"}
    assert {path.name for path in resolved("tiny/network").iterdir()} == set(network) - {"images/a.png"}


def test_all_shards_come_and_a_snapshot_that_lacks_one_is_not_whole(hub, model, monkeypatch):
    del model.files["unet/diffusion_pytorch_model.safetensors"]
    shards = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = json.dumps({"weight_map": dict(zip("ab", shards, strict=True))})
    model.files |= {f"unet/{shard}": shard.encode() for shard in shards}
    model.files["unet/diffusion_pytorch_model.safetensors.index.json"] = index.encode()
    folder = resolved("tiny/model")
    assert all((folder / "unet" / shard).is_file() for shard in shards)
    (folder / "unet" / shards[1]).unlink()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "neither on this machine nor in the hub's cache" in refusal("tiny/model").message


def test_a_connection_that_drops_is_taken_up_where_it_was(hub, lora):
    hub.drops = [3000]
    assert resolved("tiny/style").read_bytes() == LORA
    assert [asked.range for asked in hub.asked if asked.host == "files"] == ["", f"bytes={3000 // 512 * 512}-"]


def test_a_download_that_broke_off_goes_on_in_the_next_run(hub, lora, tmp_path):
    hub.drops = [5000, BROKEN]
    error = refusal("tiny/style")
    assert error.message == "the download of tiny/style/style.safetensors failed (503)"
    assert error.hint == "run it again: it continues where it stopped"
    [part] = (tmp_path / "cache" / "models--tiny--style" / "blobs").glob("*.incomplete")
    assert 0 < part.stat().st_size <= 5000
    hub.asked.clear()
    kept = part.stat().st_size
    assert resolved("tiny/style").read_bytes() == LORA
    assert [asked.range for asked in hub.asked if asked.host == "files"] == [f"bytes={kept}-"]
    assert not part.exists()


def test_ctrl_c_keeps_what_came(hub, lora, tmp_path, monkeypatch):
    def stopped(url, file, **options):
        file.write(LORA[:100])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fewstep.hub.download.http_get", stopped)
        with pytest.raises(Interrupted, match=r"^stopped while tiny/style was downloaded\n\nhint: run it again"):
            resolved("tiny/style")
    assert resolved("tiny/style").read_bytes() == LORA
    assert [asked.range for asked in hub.asked if asked.host == "files"] == ["bytes=100-"]


def test_a_damaged_file_is_refused_and_removed(hub, lora, tmp_path):
    lora.lies = {"style.safetensors"}
    error = refusal("tiny/style")
    assert re.fullmatch(
        r"tiny/style/style\.safetensors was damaged on the way: its SHA-256 begins with [0-9a-f]{12}, not [0-9a-f]{12}",
        error.message,
    )
    assert error.hint.startswith("the file was removed: run it again")
    left = [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.read_bytes() == LORA]
    assert left == []
    lora.lies.clear()
    assert resolved("tiny/style").read_bytes() == LORA


def test_what_is_left_of_another_file_is_found_out_by_the_hash(hub, lora, tmp_path):
    blobs = tmp_path / "cache" / "models--tiny--style" / "blobs"
    blobs.mkdir(parents=True)
    part = blobs / f"{lora.sha256('style.safetensors')}.incomplete"
    part.write_bytes(b"x" * 100)
    assert "was damaged on the way" in refusal("tiny/style").message
    part.write_bytes(b"x" * (len(LORA) + 1))  # longer than it may be: not taken up at all
    assert resolved("tiny/style").read_bytes() == LORA


def test_the_token_goes_to_the_hub_and_nowhere_else(hub, lora, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    resolved("tiny/style")
    assert {asked.token for asked in hub.asked if asked.host == "hub"} == {"Bearer hf_secret"}
    assert {asked.token for asked in hub.asked if asked.host == "files"} == {""}


@pytest.mark.parametrize(
    ("answer", "message", "hint"),
    [
        ((401, "GatedRepo"), "tiny/style is gated (401): its owner asks you to accept a licence first", GATED),
        ((403, "GatedRepo"), "tiny/style is gated (403): its owner asks you to accept a licence first", GATED),
        ((401, "RepoNotFound"), NOT_SHOWN, f"check the spelling; accept its licence at {{page}} and {LOG_IN}"),
        ((401, ""), NOT_SHOWN, f"check the spelling; accept its licence at {{page}} and {LOG_IN}"),
        ((403, ""), "the hub does not let you read tiny/style (403)", "accept its licence at {page}, and use a token"),
        ((404, "RepoNotFound"), "the hub has no tiny/style (404)", "check the spelling; the short names are sd15"),
        ((503, ""), "the hub at {endpoint} answered 503 about tiny/style", "try again later"),
    ],
)  # fmt: skip
def test_refusals_of_the_hub(hub, lora, answer, message, hint):
    hub.refusals["tiny/style"] = answer
    page = f"{hub.endpoint}/tiny/style"
    error = refusal("tiny/style")
    assert error.message == message.format(endpoint=hub.endpoint)
    assert error.hint.startswith(hint.format(page=page))


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("tiny/none", "the hub has no tiny/none (404)", "check the spelling"),
        ("tiny/style@v2", "tiny/style has no revision v2", "leave out what follows the @"),
        ("tiny/style/b.safetensors", "tiny/style has no file b.safetensors", f"{NAME_ONE}: style.safetensors"),
        ("tiny/several", "tiny/several has 2 .safetensors files", f"{NAME_ONE}: a.safetensors, b.safetensors"),
        ("tiny/pickles", "tiny/pickles has no .safetensors file and no model folder", "fewstep reads .safetensors"),
        (GONE, f"the hub has no {GONE} (404)", "it was taken down: use sd15, which is stable-diffusion-v1-5/stable-"),
        (LONG, f"{LONG} cannot be a name on the hub", "a hub id is owner/name"),
    ],
)  # fmt: skip
def test_what_is_not_there(hub, lora, name, message, hint):
    hub.repositories["tiny/several"] = Repository({"a.safetensors": b"", "b.safetensors": b""})
    hub.repositories["tiny/pickles"] = Repository({"pytorch_lora_weights.bin": b""})
    error = refusal(name)
    assert error.message == message
    assert error.hint.startswith(hint)


def test_a_refusal_in_the_middle(hub, lora):
    hub.file_refusals["style.safetensors"] = 403
    assert refusal("tiny/style").message == "the hub does not let you read tiny/style (403)"
    hub.file_refusals["style.safetensors"] = 404
    assert refusal("tiny/style").message == "the download of tiny/style/style.safetensors failed (404)"


@pytest.mark.parametrize("commit", ["main", "../../x", ""])
def test_what_answers_otherwise_than_a_hub_is_no_hub(hub, lora, commit):
    lora.commit = commit
    error = refusal("tiny/style")
    assert error.message == f"the server at {hub.endpoint} is not a hub"
    assert error.hint == "check HF_ENDPOINT and the network's proxy"


def test_offline_what_was_downloaded_works_and_the_rest_is_refused(hub, model, lora, tmp_path, monkeypatch):
    folder = resolved("tiny/model")
    resolved("tiny/style")
    hub.asked.clear()
    fetched.cache_clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolved("tiny/model") == resolved(f"tiny/model@{COMMIT}") == folder
    assert resolved("tiny/style").read_bytes() == LORA
    error = refusal("tiny/other")
    assert error.message == (
        f"tiny/other is neither on this machine nor in the hub's cache {tmp_path / 'cache'},"
        " and HF_HUB_OFFLINE forbids downloads"
    )
    assert error.hint == "unset HF_HUB_OFFLINE, or copy the files to this machine and give their path"
    assert hub.asked == []


def test_a_half_download_is_not_taken_for_a_model_offline(hub, model, monkeypatch):
    hub.file_refusals["vae/config.json"] = 500
    assert "the download of tiny/model/vae/config.json failed" in refusal("tiny/model").message
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "neither on this machine nor in the hub's cache" in refusal("tiny/model").message


def test_without_a_connection_the_copy_in_the_cache_is_used_with_a_note(hub, lora, monkeypatch, capsys):
    file = resolved("tiny/style")
    fetched.cache_clear()
    hub.refusals["tiny/style"] = (404, "RepoNotFound")
    capsys.readouterr()
    assert resolved("tiny/style") == file
    assert capsys.readouterr().err == "note: the hub has no tiny/style (404); the copy in the cache is used\n"
    dead = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("HF_ENDPOINT", dead)
    assert resolved("tiny/style") == file
    assert capsys.readouterr().err == (
        f"note: cannot reach the hub at {dead} for tiny/style; the copy in the cache is used\n"
    )
    error = refusal("tiny/other")
    assert error.message == f"cannot reach the hub at {dead} for tiny/other"
    assert error.hint == "check the connection and HF_ENDPOINT, or give the path of files on this machine"


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def test_a_full_disk_is_said_before_and_while(hub, lora, tmp_path, monkeypatch):
    def no_room(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("fewstep.hub.download.http_get", no_room)
        error = refusal("tiny/style")
    assert error.message == f"no space left in the hub's cache {tmp_path / 'cache'}: tiny/style does not fit"
    monkeypatch.setattr("fewstep.hub.download.shutil.disk_usage", lambda path: SimpleNamespace(free=100))
    error = refusal("tiny/style")
    assert error.message == f"no space left in the hub's cache {tmp_path / 'cache'}: tiny/style needs 0.0 GiB more"
    assert error.hint.startswith("free some space, or set HF_HUB_CACHE to a folder on another disk")


def test_a_cache_that_cannot_be_written(hub, lora, tmp_path):
    (tmp_path / "cache").write_text("a file")
    error = refusal("tiny/style")
    assert error.message.startswith(f"cannot write to the hub's cache {tmp_path / 'cache'} (")
    assert error.hint == "set HF_HUB_CACHE to another folder"


def test_reachable(hub):
    assert reachable(hub.endpoint)  # though it answers 404
    assert not reachable(f"http://127.0.0.1:{free_port()}")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        begun = time.monotonic()
        assert not reachable(f"http://127.0.0.1:{silent.getsockname()[1]}", patience_s=0.2)
        assert time.monotonic() - begun < 2
