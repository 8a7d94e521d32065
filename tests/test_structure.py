"""The rules that a program can check: imports point down, names are nouns, everything has a docstring and is small."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from fewstep import configs
from fewstep.events import NOISY

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "fewstep"
FILES = sorted(SOURCE.rglob("*.py"))
PACKAGES = ("recipes", "benchmarks", "studies")  # packages that use fewstep, and that nothing in it uses
HOUSE = FILES + [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in HOUSE}
MIB = 2**20

FLOORS = {
    "errors": 0,
    "events": 0,
    "locks": 0,
    "io": 0,
    "images": 0,
    "sheets": 0,
    "configs": 0,
    "diffusion": 1,
    "families": 1,
    "assets": 1,
    "lora": 2,
    "hub": 2,
    "models": 3,
    "engines": 4,
    "data": 4,
    "metrics": 4,
    "session": 5,
    "training": 6,
    "bridge": 6,
    "evaluate": 6,
    "commands": 7,
    "api": 8,
    "client": 8,
    "server": 8,
    "cli": 9,
    "__main__": 10,
    "recipes": 11,
    "benchmarks": 11,
    "studies": 12,
}


def module_name(path: Path) -> str:
    """fewstep.lora.files for src/fewstep/lora/files.py, studies.lab for studies/lab.py."""
    root = SOURCE.parent if path.is_relative_to(SOURCE) else ROOT
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in HOUSE}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and module of every import of the house's own, at any depth of the file."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if is_own(alias.name))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            module = node.module or ""
            if is_own(module):
                for alias in node.names:
                    whole = f"{module}.{alias.name}"
                    yield node.lineno, whole if whole in MODULES else module


def is_own(module: str) -> bool:
    """Whether a module is of fewstep or of a package beside it."""
    return module.split(".")[0] in ("fewstep", *PACKAGES)


def room(module: str) -> str:
    """A name of FLOORS, or fewstep, the package itself."""
    first, _, rest = module.partition(".")
    return rest.partition(".")[0] or first if first == "fewstep" else first


def floor(module: str) -> int:
    """Of a module by its room; the package itself (its version) is at the bottom."""
    return 0 if room(module) == "fewstep" else FLOORS[room(module)]


def may_import(own: str, module: str) -> bool:
    """Whether a module lies below, in the same room, or is a file of the same floor."""
    if floor(module) != floor(own):
        return floor(module) < floor(own)
    return room(module) == room(own) or (SOURCE / f"{room(module)}.py").is_file()


def test_every_module_has_a_floor():
    names = {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in FILES} - {"__init__"}
    assert names | set(PACKAGES) <= FLOORS.keys()
    assert len(names) > 10


@pytest.mark.parametrize(
    "path", [path for path in HOUSE if path.parent != SOURCE or path.stem != "__init__"], ids=module_name
)
def test_imports_point_down(path):
    """And not to another folder of the same floor."""
    own = module_name(path)
    wrong = [f"line {line} imports {module}" for line, module in imports(path) if not may_import(own, module)]
    assert wrong == []


def test_imports_have_no_cycle():
    graph = {name: {m for _, m in imports(path)} - {name} for name, path in MODULES.items()}
    graph["fewstep"] = set()  # its imports are for type checkers; names are looked up when they are used
    assert "fewstep.errors" in graph["fewstep.io"]
    assert "recipes.emoji.captions" in graph["studies.limits.general"]
    TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("path", [*HOUSE, *sorted((ROOT / "tests").rglob("*.py"))], ids=lambda path: path.stem)
def test_nothing_changes_where_modules_are_found(path):
    tree = TREES.get(path) or ast.parse(path.read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "path"]
    assert [node.lineno for node in attributes if isinstance(node.value, ast.Name) and node.value.id == "sys"] == []
    assert "runpy" not in imported


def test_docs_hold_pages_pictures_and_figures_alone():
    kinds = {path.suffix for path in (ROOT / "docs").rglob("*") if path.is_file()}
    assert {".md"} < kinds <= {".md", ".json", ".jpg"}


def command_configs() -> list[type[configs.Config]]:
    public = [getattr(configs, name) for name in configs.__all__]
    kinds = [kind for kind in public if isinstance(kind, type) and issubclass(kind, configs.Config)]
    return [kind for kind in kinds if kind is not configs.Config]


HOLDERS = {"config", "where", "draw"}  # what configs are called where they are read


def fields_read() -> set[str]:
    """Names read as `config.name` or `something.config.name`, or by getattr, outside configs."""
    names = set()
    for path in FILES:
        if "configs" in path.parts:
            continue
        for node in ast.walk(TREES[path]):
            if isinstance(node, ast.Attribute):
                holder = node.value
                name = holder.id if isinstance(holder, ast.Name) else getattr(holder, "attr", None)
                if name in HOLDERS:
                    names.add(node.attr)
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr":
                held, *rest = node.args
                if getattr(held, "id", "") in HOLDERS and isinstance(rest[0], ast.Constant):
                    names.add(rest[0].value)
    return names


@pytest.mark.parametrize("kind", command_configs(), ids=lambda kind: kind.__name__)
def test_every_config_field_is_read(kind):
    assert set(kind.model_fields) - fields_read() == set()


@pytest.mark.parametrize("kind", command_configs(), ids=lambda kind: kind.__name__)
def test_every_config_field_has_help(kind):
    configs.describe(kind)
    assert [name for name, field in kind.model_fields.items() if not field.description] == []


def test_fields_that_may_change_on_resume_exist():
    assert set(configs.TrainingConfig.model_fields) >= configs.TrainingConfig.may_change


TWICE = {"TCD"}  # names of two things: a paper that has both a solver and a method


def named(tree: ast.Module) -> Iterator[str]:
    """The public classes and aliases of types that a module defines."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        yield from (x.id for x in targets if isinstance(x, ast.Name) and x.id[0].isupper() and not x.id.isupper())


def test_one_name_is_one_thing():
    places: dict[str, list[str]] = {}
    for path in FILES:
        for name in named(TREES[path]):
            places.setdefault(name, []).append(module_name(path))
    assert {name: found for name, found in places.items() if len(found) > 1 and name not in TWICE} == {}
    assert len(places) > 100


NO_NOUNS = {"told", "drawn", "beside", "said", "heard", "wanted", "shown"}


@pytest.mark.parametrize("path", HOUSE, ids=module_name)
def test_names_of_things_are_nouns(path):
    names = {node.id for node in ast.walk(TREES[path]) if isinstance(node, ast.Name)}
    names |= {node.arg for node in ast.walk(TREES[path]) if isinstance(node, ast.arg)}
    names |= {node.name for node in ast.walk(TREES[path]) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert sorted(name for name in (*names, path.stem) if NO_NOUNS & set(name.lower().split("_"))) == []


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize("path", HOUSE, ids=module_name)
def test_what_is_public_has_a_docstring(path):
    tree = TREES[path]
    assert ast.get_docstring(tree), "the module has none"
    definitions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    silent = [node.name for node in definitions if node.name[0] != "_" and not ast.get_docstring(node)]
    assert silent == []


@pytest.mark.parametrize("path", HOUSE, ids=module_name)
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
    assert sum(sizes.values()) < 50 * MIB, sorted(sizes, key=sizes.__getitem__)[-5:]


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


@pytest.mark.parametrize("path", [path for path in FILES if room(module_name(path)) != "cli"], ids=module_name)
def test_only_the_command_line_prints(path):
    """What is below it tells events."""
    wrong = [f"line {line} imports {module}" for line, module in all_imports(path) if module.split(".")[0] == "tqdm"]
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("print", "input"):
            wrong.append(f"line {node.lineno} calls {ast.unparse(node.func)}")
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.stdout", "sys.stderr", "warnings.warn"):
            wrong.append(f"line {node.lineno} uses {ast.unparse(node)}")
    assert wrong == []


def all_imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and module of every import, at any depth of the file."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or ""


STATE = """
import importlib, logging, os, signal, sys, warnings
from fewstep.events import hush
hush()
import diffusers.utils.logging, transformers.utils.logging
theirs, ours = sys.argv[1], sys.argv[2].split()
def state():
    loggers = [logging.root, *(x for x in logging.root.manager.loggerDict.values() if isinstance(x, logging.Logger))]
    libraries = (diffusers.utils.logging, transformers.utils.logging)
    found = {f"logger {x.name}": (x.level, len(x.handlers), x.disabled) for x in loggers if x.level or x.handlers}
    found |= {f"bars of {x.__name__}": x.is_progress_bar_enabled() for x in libraries}
    found |= {f"${name}": value for name, value in os.environ.items()}
    found |= {f"filter {number}": x for number, x in enumerate(map(str, warnings.filters))}
    found |= {f"signal {x}": str(signal.getsignal(x)) for x in (signal.SIGINT, signal.SIGTERM)}
    torch = sys.modules["torch"]
    return found | {"dtype": torch.get_default_dtype(), "threads": torch.get_num_threads(),
                    "grad": torch.is_grad_enabled(), "hook": sys.excepthook, "showwarning": warnings.showwarning}
exec(theirs)
before = state()
for name in ours:
    importlib.import_module(name)
after = state()
print([name for name in before.keys() | after.keys() if before.get(name) != after.get(name)])
"""


def test_importing_changes_nothing_in_the_process():
    """But for what other libraries do when they are imported: these are imported first."""
    theirs = {
        ast.unparse(node)
        for path in FILES
        for node in TREES[path].body
        if (isinstance(node, ast.Import) and not is_own(node.names[0].name))
        or (isinstance(node, ast.ImportFrom) and not is_own(node.module or ""))
    } - {"from __future__ import annotations"}
    ours = [module_name(path) for path in FILES if path.stem != "__main__"]
    command = [sys.executable, "-c", STATE, "\n".join(sorted(theirs)), " ".join(ours)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=SOURCE.parent, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize(
    "begun", [*(f"import {package}" for package in PACKAGES), "from fewstep.cli import entry; entry()"]
)
def test_programs_let_no_library_warn_as_it_is_imported(begun):
    """Those of fewstep's own packages, from their package's first line on, as other processes import it too."""
    warn = "import logging, atexit; atexit.register(lambda: [logging.getLogger(name).warning('') for name in %r])"
    command = [sys.executable, "-c", f"{warn % (NOISY,)}\n{begun}", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (0, "")
