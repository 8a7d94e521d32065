"""Errors name fields of configs, which each skin spells in its own way; nothing foreign is taken for a field."""

import ast
import copy
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fewstep import configs, errors
from fewstep.configs import option_name
from fewstep.errors import LONGEST, FewstepError, Line, UsageError, number_of, option, spelled

SOURCE = Path(errors.__file__).parent
PUBLIC = [getattr(configs, name) for name in configs.__all__]
FIELDS = {name for kind in PUBLIC if isinstance(kind, type) and issubclass(kind, configs.Config)
          for name in kind.model_fields}  # fmt: skip
FILES = [path for path in sorted(SOURCE.rglob("*.py")) if path.relative_to(SOURCE).parts[0] != "cli"]


def quoted(field: str) -> str:
    """As a server would spell it."""
    return f'"{field}"'


def test_python_spells_a_field_plainly_and_skins_in_their_own_way():
    error = UsageError(f"{option('guidance_scale')} 99 is too large", f"give {option('loras')} or a lower one")
    assert error.field == "guidance_scale"
    assert error.message == "guidance_scale 99 is too large"
    assert error.hint == "give loras or a lower one"
    assert str(error) == "guidance_scale 99 is too large\n\nhint: give loras or a lower one"
    assert error.spelled(option_name) == "--guidance-scale 99 is too large\n\nhint: give --lora or a lower one"
    assert error.spelled(quoted) == '"guidance_scale" 99 is too large\n\nhint: give "loras" or a lower one'
    assert error.whole == f"{option('guidance_scale')} 99 is too large; give {option('loras')} or a lower one"


@pytest.mark.parametrize(("count", "words"), [(0, "0 steps"), (1, "1 step"), (2, "2 steps"), (1200, "1,200 steps")])
def test_one_thing_is_no_plural(count, words):
    assert number_of(count, "step") == words


def test_an_error_may_name_no_field_or_one_that_its_message_leaves_out():
    assert FewstepError("no", "yes").field is None
    assert UsageError("PROMPT is empty", "write one", "prompts").field == "prompts"


def test_a_message_put_into_another_keeps_its_fields():
    inner = FewstepError(f"{option('steps')} 5 is odd", "use 4")
    outer = UsageError(f"{option('rows')} ddim:5: {inner.message.marked}", inner.hint)
    assert outer.spelled(option_name) == "--rows ddim:5: --steps 5 is odd\n\nhint: use 4"
    assert outer.message.fields == ("rows", "steps")


@pytest.mark.parametrize("foreign", ["\0", "\0\0steps\0\0", f"\0{'0' * 16}\0steps\0{'0' * 16}\0", "--steps", "{steps}"])
def test_foreign_text_names_no_field(foreign):
    error = UsageError(f"{option('image')} {foreign}: not found", f"is {foreign} there?")
    assert error.message.fields == ("image",)
    assert error.hint.fields == ()
    assert error.spelled(option_name).count("--") == 1 + 2 * foreign.count("--")
    assert "\0" not in str(error) + error.spelled(option_name) + repr(error)


def test_marks_of_another_process_name_no_field():
    """They are new in each, so whoever saw one cannot use it again."""
    code = "from fewstep.errors import option; print(ascii(option('steps')))"
    theirs = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=SOURCE.parent)
    mark = ast.literal_eval(theirs.stdout)
    assert mark.count("\0") == option("steps").count("\0") == 4
    assert Line(mark).fields == ()


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_an_error_comes_back_whole_from_another_process(again, monkeypatch):
    text = f"{option('steps')} \x1b {'x' * 3000}"
    error = UsageError(text, f"see {option('help')}", "train_steps")
    told = error.spelled(option_name)
    found = again(error)
    assert (type(found), found.field, found.spelled(option_name)) == (UsageError, "train_steps", told)
    assert errors.MARK.encode() not in pickle.dumps(error)


def test_a_long_message_is_cut_between_what_is_said_and_its_length():
    text = f"{'x' * (LONGEST - 3)}{option('steps')}{'y' * 99}"
    assert Line(text) == "x" * (LONGEST - 3) + f"ste ... ({LONGEST + 101:,} characters)"
    assert Line(text).spelled(option_name) == "x" * (LONGEST - 3) + f"--s ... ({LONGEST + 103:,} characters)"


def test_text_of_several_lines_is_spelled_line_by_line():
    assert spelled(f"a {option('out')}\nb {option('k')}", option_name) == "a --out\nb --k"
    assert spelled(f"a {option('out')}\nb") == "a out\nb"


def test_every_config_error_names_its_field():
    with pytest.raises(UsageError, match=r"^guidance_scale 2000: ") as caught:
        configs.build(configs.Draw, prompts=("a",), guidance_scale=2000)
    assert caught.value.field == "guidance_scale"
    assert caught.value.spelled(option_name).startswith("--guidance-scale 2000: ")
    with pytest.raises(UsageError, match=r"^clip_model needs clip_score\n") as caught:
        configs.build(configs.CompareConfig, clip_model="clip")
    assert caught.value.field == "clip_model"


def strings(path: Path) -> list[tuple[int, str]]:
    """Line and text of each string of a file, {} for what is put in; but of docstrings and of what stands alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    inside = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    inside |= {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    found = []
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            found.append((node.lineno, "".join(map(str, parts))))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            found.append((node.lineno, node.value))
    return found


TO_TYPE = r"(fewstep|\{\}) (sample|distill|merge|resize|difference|doctor) "
COMMAND = re.compile(TO_TYPE + r"|^pip install |^--(model|lora)( \{\})?$")
OPTION = re.compile(r"(?<![\w-])--[a-z]")
EXCEPT = ("elsewhere.py", "report.py")  # the one is for people who type options of other programs, the other holds CSS


def test_only_the_command_line_spells_options():
    """Below it messages name fields by `option`; commands to type and configs' help, which is theirs, are not that."""
    found = [
        f"{path.name}:{line}: {text}"
        for path in FILES
        if path.name not in EXCEPT
        for line, text in strings(path)
        if OPTION.search(text) and not COMMAND.search(text)
    ]
    assert found == []


def test_every_field_that_is_named_is_one_of_a_config():
    called = [
        (path.name, argument.value)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "option"
        for argument in node.args
        if isinstance(argument, ast.Constant)
    ]
    assert len(called) > 80
    assert [(file, name) for file, name in called if name not in FIELDS | {"help"}] == []
