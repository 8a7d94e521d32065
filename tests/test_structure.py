"""The house's rules that a program can check: imports point down, everything is used, said and small."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from fewstep import configs

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "fewstep"
FILES = sorted(SOURCE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
MIB = 2**20

FLOORS = {
    "errors": 0,
    "events": 0,
    "locks": 0,
    "io": 0,
    "configs": 0,
    "images": 0,
    "assets": 1,
    "families": 1,
    "hub": 1,
    "diffusion": 2,
    "lora": 3,
    "metrics": 3,
    "models": 4,
    "engines": 4,
    "planning": 5,
    "canvas": 5,
    "pipeline": 5,
    "merge": 5,
    "inspection": 5,
    "data": 6,
    "evaluate": 6,
    "scheduler": 6,
    "plug": 6,
    "training": 7,
    "export": 7,
    "bench": 7,
    "plan": 7,
    "demo": 7,
    "doctor": 7,
    "cli": 8,
    "server": 8,
    "ui": 8,
    "__main__": 8,
}


def module_name(path: Path) -> str:
    """fewstep.lora.files for src/fewstep/lora/files.py."""
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and module of every import of fewstep's own, at any depth of the file."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] == "fewstep")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            module = node.module or ""
            if module.split(".")[0] == "fewstep":
                for alias in node.names:
                    whole = f"{module}.{alias.name}"
                    yield node.lineno, whole if whole in MODULES else module


def floor(module: str) -> int:
    """Of a module by its first name below fewstep; the package itself (its version) is at the bottom."""
    return FLOORS[module.split(".")[1]] if "." in module else 0


def test_every_module_has_a_floor():
    names = {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in FILES} - {"__init__"}
    assert names <= FLOORS.keys()
    assert len(names) > 10


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.parent != SOURCE or path.stem != "__init__"], ids=module_name
)
def test_imports_point_down(path):
    own = floor(module_name(path))
    up = [f"line {line} imports {module}" for line, module in imports(path) if floor(module) > own]
    assert up == []


def test_imports_have_no_cycle():
    graph = {name: {m for _, m in imports(path)} - {name} for name, path in MODULES.items()}
    assert "fewstep.errors" in graph["fewstep.io"]
    TopologicalSorter(graph).prepare()  # raises CycleError


def command_configs() -> list[type[configs.Config]]:
    kinds = [kind for kind in vars(configs).values() if isinstance(kind, type) and issubclass(kind, configs.Config)]
    return [kind for kind in kinds if kind is not configs.Config]


def fields_read() -> set[str]:
    """Names read as `config.name` or `something.config.name` outside configs."""
    names = set()
    for path, tree in TREES.items():
        if "configs" in path.parts:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                holder = node.value
                name = holder.id if isinstance(holder, ast.Name) else getattr(holder, "attr", None)
                if name == "config":
                    names.add(node.attr)
    return names


@pytest.mark.parametrize("kind", command_configs(), ids=lambda kind: kind.__name__)
def test_every_config_field_is_read(kind):
    assert set(kind.model_fields) - fields_read() == set()


@pytest.mark.parametrize("kind", command_configs(), ids=lambda kind: kind.__name__)
def test_every_config_field_has_help(kind):
    assert [name for name, field in kind.model_fields.items() if not field.description] == []


def test_fields_that_may_change_on_resume_exist():
    assert set(configs.TrainingConfig.model_fields) >= configs.TrainingConfig.may_change


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_what_is_public_has_a_docstring(path):
    tree = TREES[path]
    assert ast.get_docstring(tree), "the module has none"
    definitions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    silent = [node.name for node in definitions if node.name[0] != "_" and not ast.get_docstring(node)]
    assert silent == []


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_files_and_functions_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 450
    bodies = {node.name: (node.end_lineno or 0) - node.body[0].lineno + 1 for node in functions(TREES[path])}
    assert {name: lines for name, lines in bodies.items() if lines > 60} == {}


def test_the_tree_in_git_is_small():
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    sizes = {name: (ROOT / name).stat().st_size for name in listed.split("\0") if (ROOT / name).is_file()}
    assert sum(sizes.values()) < 45 * MIB, sorted(sizes, key=sizes.__getitem__)[-5:]


@pytest.mark.parametrize("arguments", [["--help"], ["distill", "--help"], ["sample"]], ids=" ".join)
def test_help_imports_no_torch(arguments):
    code = (
        "import sys; from fewstep.cli import main; main(sys.argv[1:]);"
        "print([m for m in ('torch', 'diffusers', 'transformers', 'PIL', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, cwd=SOURCE.parent
    )
    assert done.stdout.splitlines()[-1] == "[]"
