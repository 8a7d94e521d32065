"""1,400 damaged and hostile files: refused in one line, or read whole and finite; nothing runs, nothing is left."""

import json
import math
import pickle
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from fewstep.errors import FewstepError
from fewstep.families import FAMILIES
from fewstep.lora.files import load_adapter
from fewstep.lora.low_rank import check_fits, square_of
from fewstep.lora.numbered import in_order, visited

SHAPES = FAMILIES["emoji"].all_modules()
NAMES = list(FAMILIES["emoji"].modules())[:6]
MIB = 2**20
Mutation = Callable[[bytes, random.Random], bytes]


def good_file() -> bytes:
    """A small LoRA in kohya's layout."""
    tensors = {}
    for name in NAMES:
        key, shape = f"lora_unet_{name.replace('.', '_')}", SHAPES[name]
        tail, ones = ((shape.kernel,) * 2, (1, 1)) if shape.kernel else ((), ())
        tensors[f"{key}.lora_down.weight"] = torch.randn(2, shape.in_, *tail)
        tensors[f"{key}.lora_up.weight"] = torch.randn(shape.out, 2, *ones)
        tensors[f"{key}.alpha"] = torch.tensor(2.0)
    return save(tensors, {"fewstep.recipe": json.dumps({"method": "lcd", "steps": 4})})


def numbered_file() -> bytes:
    """The same in cloneofsimo's layout: the attention of the emoji family."""
    tensors, names = (
        {},
        visited(in_order(name for name in SHAPES if not name.startswith("text")), ["Attention", "GEGLU"]),
    )
    for i, name in enumerate(names):
        tensors |= {
            f"unet:{i}:up": torch.randn(SHAPES[name].out, 1),
            f"unet:{i}:down": torch.randn(1, SHAPES[name].in_),
        }
    return save(tensors, {"unet": '["Attention", "GEGLU"]', "fewstep.recipe": json.dumps({"method": "lcd"})})


def dora_file() -> bytes:
    """A DoRA in kohya's layout; what reads it brings weights of ones."""
    name = next(name for name in NAMES if SHAPES[name].kernel == 0)
    key, shape = f"lora_unet_{name.replace('.', '_')}", SHAPES[name]
    tensors = {"lora_down.weight": torch.randn(2, shape.in_), "lora_up.weight": torch.randn(shape.out, 2),
               "alpha": torch.tensor(2.0), "dora_scale": torch.ones(shape.out, 1)}  # fmt: skip
    return save({f"{key}.{part}": x for part, x in tensors.items()}, {"fewstep.recipe": json.dumps({"method": "lcd"})})


def factorised_file() -> bytes:
    """A LoKr with a middle, a LoHa, a word's embedding and a config with a pattern."""
    names = [next(n for n in SHAPES if SHAPES[n].kernel == 3 and SHAPES[n].in_ > 8),
             *(n for n in NAMES if SHAPES[n].kernel == 0)]  # fmt: skip
    (conv, linear, *_), keys = names, [f"lora_unet_{n.replace('.', '_')}" for n in names]
    (out, in_, _), (rows, columns, _) = SHAPES[conv], SHAPES[linear]
    parts = {f"{keys[0]}.lokr_w1": (2, 2), f"{keys[0]}.lokr_w2_a": (1, out // 2), f"{keys[0]}.alpha": (),
             f"{keys[0]}.lokr_w2_b": (1, in_ // 2), f"{keys[0]}.lokr_t2": (1, 1, 3, 3),
             **{f"{keys[1]}.hada_w{i}_a": (rows, i) for i in (1, 2)},
             **{f"{keys[1]}.hada_w{i}_b": (i, columns) for i in (1, 2)},
             "bundle_emb.word.clip_l": (1, 4)}  # fmt: skip
    told = {"unet.lora_alpha": 2, "unet.alpha_pattern": {".*conv.*": 1}}
    metadata = {"fewstep.recipe": json.dumps({"method": "lcd"}), "lora_adapter_metadata": json.dumps(told)}
    return save({key: torch.randn(shape) for key, shape in parts.items()}, metadata)


FILES = {"kohya": good_file, "cloneofsimo": numbered_file, "dora": dora_file, "factorised": factorised_file}


def split(data: bytes) -> tuple[dict, bytes]:
    """Header and body."""
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def joined(header: object, body: bytes, size: int | None = None) -> bytes:
    """A file of these, its header's length as it is or as claimed."""
    text = json.dumps(header).encode()
    return (len(text) if size is None else size).to_bytes(8, "little") + text + body


def truncated(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def claimed(data: bytes, chance: random.Random) -> bytes:
    return joined(*split(data), size=chance.choice([0, 1, 2**31, 10 * 2**30, 2**63, 2**64 - 1]))


def flipped(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice([1, 3, 30])):
        changed[chance.randrange(min(len(changed), 4000))] = chance.randrange(256)
    return bytes(changed)


def garbled_body(data: bytes, chance: random.Random) -> bytes:
    header, body = split(data)
    at = chance.randrange(0, len(body) - 4, 4)
    value = chance.choice([b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\x00\x00\x80\xff"])  # NaN, inf, -inf
    return joined(header, body[:at] + value + body[at + 4 :])


def changed_entry(data: bytes, chance: random.Random) -> bytes:
    header, body = split(data)
    entry = header[chance.choice([key for key in header if key != "__metadata__"])]
    field = chance.choice(list(entry))
    entry[field] = chance.choice(
        ["F16", "I32", "F8_E4M3", "EVIL", [], [1], [2, 2], [-1, 5], [0, 0], [2**62, 2**62], [0, 10**12], None, 7, "x"]
    )
    return joined(header, body)


def renamed(data: bytes, chance: random.Random) -> bytes:
    header, body = split(data)
    key = chance.choice([key for key in header if key != "__metadata__"])
    name = chance.choice(
        ["../../etc/passwd", "lora_unet_\x00.lora_down.weight", "a" * 100_000, "", ".alpha",
         "lora_unet_.lora_up.weight", "💥.lora_down.weight", key + ".dora_scale",
         "unet.__class__.lora_A.weight", key.replace("down", "mid")]
    )  # fmt: skip
    header[name] = header.pop(key)
    return joined(header, body)


ADAPTERS = (
    '{"unet.alpha_pattern": {"(": 1}}',
    '{"unet.alpha_pattern": {"": 0}}',
    "[" * 9999,
    '{"lora_alpha": 1e999}',
    "no",
    "[]",
    '{"unet.lora_alpha": "x"}',
    '{"unet.alpha_pattern": 3}',
    '{"unet.use_dora": true}',
)


def other_metadata(data: bytes, chance: random.Random) -> bytes:
    header, body = split(data)
    header["__metadata__"] = chance.choice(
        [{"fewstep.recipe": "{"}, {"fewstep.recipe": "[]"}, {"fewstep.recipe": '{"method": 3}'}, {"x": 1}, [], "x",
         None, *({"lora_adapter_metadata": text} for text in ADAPTERS)]
    )  # fmt: skip
    return joined(header, body)


def dropped(data: bytes, chance: random.Random) -> bytes:
    header, body = split(data)
    del header[chance.choice(list(header))]
    return joined(header, body)


def amplifying(data: bytes, chance: random.Random) -> bytes:
    """Factors of a few values that would multiply out to many, of a module that is there or not."""
    name = chance.choice([*NAMES, "nobody"])
    key, long = f"lora_unet_{name.replace('.', '_')}", chance.choice([1000, 9999])
    kinds = [
        {"lokr_w1": (long, 1), "lokr_w2": (1, long)}, {"lokr_w1": (long, 1), "lokr_w2": (long, 1)},
        {"lokr_w1_a": (long, 1), "lokr_w1_b": (1, long), "lokr_w2": (9, 9)}, {"lokr_w1": (99, 99), "lokr_w2": (99, 99)},
        {f"hada_w{i}_{x}": (long, 1) if x == "a" else (1, long) for i in (1, 2) for x in "ab"},
        {"lora_down.weight": (1, long, 1, 1), "lora_mid.weight": (1, 1, 99, 99), "lora_up.weight": (9, 1)},
        {"lora_down.weight": (long, 9), "lora_up.weight": (9, long)},
        {"lora_down.weight": (0, 9), "lora_up.weight": (9, 0)},
    ]  # fmt: skip
    parts = chance.choice(kinds)
    return save({f"{key}.{part}": torch.ones(shape, dtype=torch.float16) for part, shape in parts.items()})


def stand_in(data: bytes, chance: random.Random) -> bytes:
    """What lies where a file should be."""
    return chance.choice(
        [b"version https://git-lfs.github.com/spec/v1\n", b"<!DOCTYPE html>", b"Entry not found", b"PK\x03\x04"]
    )


def noise(data: bytes, chance: random.Random) -> bytes:
    return chance.randbytes(chance.choice([0, 7, 8, 100, 5000]))


MUTATIONS: list[Mutation] = [
    truncated, claimed, flipped, garbled_body, changed_entry, renamed, other_metadata, dropped, noise,
    amplifying, stand_in,
]  # fmt: skip


def outcome(path: Path) -> str:
    """What happened: refused, or read when every module is there and finite."""
    try:
        adapter, _ = load_adapter(path, SHAPES, lambda name: torch.ones(SHAPES[name].out, SHAPES[name].in_))
        for name in adapter.modules:
            assert math.isfinite(square_of(adapter.modules, name))
        check_fits(adapter, SHAPES, "x", "y")
        for update in adapter.modules.values():
            assert all(bool(x.isfinite().all()) for x in update)
    except FewstepError as error:
        return "refused" if error.message and error.hint and "\n" not in error.message else f"badly said: {error}"
    return "read"


@pytest.mark.parametrize("layout", FILES)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_damaged_files(mutation: Mutation, layout: str, tmp_path: Path) -> None:
    data, path = FILES[layout](), tmp_path / "x.safetensors"
    path.write_bytes(data)
    assert outcome(path) == "read"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seen = set()
    for seed in range(56 if layout == "kohya" else 24):
        path.write_bytes(mutation(data, random.Random(seed)))
        begun = time.process_time()
        seen.add(outcome(path))
        assert time.process_time() - begun < 20, seed
    assert "refused" in seen
    assert seen <= {"refused", "read"}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * MIB / 1024
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


class Code:
    """Runs something when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".ckpt", ".pth"])
def test_pickles_with_code_do_not_run(suffix: str, tmp_path: Path) -> None:
    for i, value in enumerate(
        [Code(tmp_path / "ran"), {"a.lora_down.weight": Code(tmp_path / "ran")}, [1], [1, 2], "x"]
    ):
        path = tmp_path / f"{i}{suffix}"
        path.write_bytes(pickle.dumps(value))
        assert outcome(path) == "refused"
        torch.save(value, path)
        assert outcome(path) == "refused"
    assert not (tmp_path / "ran").exists()
