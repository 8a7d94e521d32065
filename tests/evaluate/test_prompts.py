"""Prompts: from files, captions and what ships; broken lines are named by their numbers."""

import json
from pathlib import Path

import pytest

from fewstep.assets import shipped_kit
from fewstep.data import prompts as module
from fewstep.data.prompts import Prompt, read_prompts
from fewstep.errors import FewstepError
from fewstep.evaluate.prompts import numbers_of, prompts_for
from fewstep.metrics.reference import load_reference
from recipes.emoji.captions import spoken
from tests.tiny import tiny_images


def test_text_files_have_one_prompt_a_line(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffa cat\r\n\n  un café \n{not json}".encode())
    assert read_prompts(file) == (Prompt("a cat"), Prompt("un café"), Prompt("{not json}"))
    assert prompts_for(file, tmp_path / "never read") == (read_prompts(file), str(file))


def test_tables_may_say_style_and_concept(tmp_path):
    file = tmp_path / "prompts.jsonl"
    rows = [
        {"text": " a cat ", "style": "flat", "concept": "1f431"},
        {"caption": "a dog"},
        {"prompt": "a", "style": None},
    ]
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    assert read_prompts(file) == (Prompt("a cat", "flat", "1f431"), Prompt("a dog"), Prompt("a"))


def test_broken_lines_are_named(tmp_path):
    file = tmp_path / "prompts.jsonl"
    lines = ["{", '{"text": "a cat"}', "3", '{"text": ""}', '{"text": "x", "style": 3}', '{"text": 5}', "[]", "nul"]
    file.write_text("\n".join(lines))
    with pytest.raises(FewstepError) as caught:
        read_prompts(file)
    assert caught.value.message.startswith(f"{file}: line 1 is not JSON (")
    for words in (
        "line 3 is not a JSON object",
        "line 4 has no text",
        "line 5 has a style that is not text",
        "line 6 has no text",
    ):
        assert words in caught.value.message
    assert caught.value.message.endswith(" and 2 more lines")
    assert '"style"' in caught.value.hint


def test_text_that_is_not_utf8_is_named(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"a cat\na caf\xe9\n")
    with pytest.raises(FewstepError, match=r"prompts.txt: line 2 is not UTF-8\n\nhint: save the file as UTF-8"):
        read_prompts(file)


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(FewstepError, match=r"cannot read the prompts in .*nowhere.txt \(No such file"):
        read_prompts(tmp_path / "nowhere.txt")
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(FewstepError, match=r"there are no prompts in .*empty.txt\n\nhint: write one prompt per line"):
        read_prompts(tmp_path / "empty.txt")


def test_captions_of_the_reference_are_shuffled_once_and_for_all(tmp_path):
    folder = tiny_images(tmp_path / "images", 8)
    found = prompts_for(None, folder)
    assert found == prompts_for(None, folder)
    captions = [file.read_text() for file in sorted(folder.glob("*.txt"))]
    texts = [prompt.text for prompt in found.prompts]
    assert sorted(texts) == sorted(captions)
    assert texts != captions
    assert found.source == f"captions of {folder}, shuffled"


def test_a_table_of_the_reference_may_say_style_and_concept(tmp_path):
    folder = tiny_images(tmp_path / "images", 1)
    row = {"file_name": "00.png", "text": "a cat", "style": "flat", "concept": "1f431"}
    (folder / "metadata.jsonl").write_text(json.dumps(row))
    assert prompts_for(None, folder).prompts == (Prompt("a cat", "flat", "1f431"),)
    assert prompts_for(None, folder / "metadata.jsonl").prompts == (Prompt("a cat", "flat", "1f431"),)


def test_errors_of_the_reference_name_its_option(tmp_path):
    with pytest.raises(
        FewstepError, match=r"reference .*nowhere: data not found: .*\n\nhint: check the path; images with captions"
    ):
        prompts_for(None, tmp_path / "nowhere")


def test_what_ships_is_the_last_resort(tmp_path, monkeypatch):
    (tmp_path / "drawings").mkdir()
    row = {"file_name": "flat/1f431.png", "text": "flat emoji of cat", "style": "flat"}
    (tmp_path / "drawings" / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.setattr(module, "shipped_kit", lambda: tmp_path)
    assert prompts_for(None, None).prompts == (Prompt("flat emoji of cat", "flat", "1f431"),)


def test_without_what_ships_a_file_is_asked_for(monkeypatch):
    def missing():
        raise FewstepError("kit is not among the shipped files", "install again")

    monkeypatch.setattr(module, "shipped_kit", missing)
    with pytest.raises(FewstepError, match=r"there are no prompts: kit is not .*\n\nhint: use prompt_file with"):
        prompts_for(None, None)


# --- lists that ship ----------------------------------------------------------------------------------------


def test_names_are_of_things_that_agreement_knows():
    listed = prompts_for(Path("names"), None)
    known = set(load_reference(shipped_kit() / "reference.safetensors").concepts)
    assert listed.source == "names, a list that ships"
    assert len({prompt.text for prompt in listed.prompts}) == len(listed.prompts) == 1056
    assert {prompt.style for prompt in listed.prompts} == {"none"}
    assert {prompt.concept for prompt in listed.prompts} <= known
    assert all(prompt.text == spoken(prompt.text) for prompt in listed.prompts)


def test_a_file_comes_before_a_list_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(prompts_for(Path("typed"), None).prompts) >= 200
    Path("typed").write_text("a cat\n")
    assert prompts_for(Path("typed"), None) == ((Prompt("a cat"),), "typed")
    with pytest.raises(
        FewstepError,
        match=r"cannot read the prompts in nameless .*\n\nhint: .* a list that ships: names, typed or general",
    ):
        prompts_for(Path("nameless"), None)


def test_pictures_are_numbered_by_their_prompt():
    assert numbers_of(["a", "b", "a", "c", "b"]).tolist() == [0, 1, 0, 2, 1]
