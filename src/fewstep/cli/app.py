"""The command line. It turns options into configs, and errors into one line and a hint."""

import gc
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import SequenceMatcher
from importlib import import_module
from typing import Annotated, Any, TypeVar

from cyclopts import App, CycloptsError, Group, Parameter
from pydantic import ValidationError, create_model

from fewstep import __version__, configs
from fewstep.cli.show import show
from fewstep.cli.sink import Terminal
from fewstep.configs import Config, Typed, answers, build, describe, option_name, usage_error
from fewstep.configs.base import ALIKE
from fewstep.configs.sections import section_of
from fewstep.errors import FewstepError, UsageError
from fewstep.events import doing, hush, telling

OPTIONS = Parameter(negative=())  # no --no-json, no --empty-lora
SPINS = (
    "10000"  # of a GNU OpenMP thread that waits, before it sleeps; with its 300,000 a busy core slows others 50 times
)

HELP = frozenset({"--help", "-h"})
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)")
WEIGHED = re.compile(rf"\S+:{NUMBER.pattern}")

C = TypeVar("C", bound=Config)
Command = Callable[[Any], None]

COMMANDS: dict[str, tuple[str, str]] = {  # name -> the name of its config, and the module of its function
    "demo": ("DemoConfig", "demo"),
    "sample": ("SampleConfig", "sample"),
    "distill": ("DistillConfig", "train"),
    "finetune": ("FinetuneConfig", "train"),
    "diagnose": ("DiagnoseConfig", "diagnose"),
    "plan": ("PlanConfig", "plan"),
    "merge": ("MergeConfig", "merge"),
    "resize": ("ResizeConfig", "merge"),
    "difference": ("DifferenceConfig", "merge"),
    "inspect": ("InspectConfig", "inspect"),
    "tune": ("TuneConfig", "tune"),
    "compare": ("CompareConfig", "compare"),
    "bench": ("BenchConfig", "bench"),
    "export": ("ExportConfig", "export"),
    "stream": ("StreamConfig", "stream"),
    "serve": ("ServeConfig", "server"),
    "data check": ("DataCheckConfig", "data"),
    "data encode": ("DataEncodeConfig", "data"),
    "list": ("ListConfig", "list"),
    "doctor": ("DoctorConfig", "doctor"),
}

GROUPS = {"data": "Look at images with captions, or encode them, before training."}  # of commands of two words


def new_app(names: Iterable[str] = COMMANDS, with_help: bool = True) -> App:
    """The `fewstep` program: one subcommand per config.

    names: the commands it has, in the order of its help. with_help: whether the options have their help, which takes a
    while to put together.
    """
    app = App(
        name="fewstep",
        help="Turn any Stable Diffusion model into a 4-step generator: distil, sample, merge, compare.",
        version=__version__,
        help_format="plaintext",
        default_parameter=OPTIONS,
        suppress_keyboard_interrupt=False,  # `guarded` prints its own message
    )
    groups: dict[str, App] = {}
    for place, name in enumerate(names):
        group, _, last = name.rpartition(" ")
        if group and group not in groups:
            groups[group] = App(name=group, help=GROUPS[group], sort_key=place)
            app.command(groups[group])
        function = command(config_of(name), runner(COMMANDS[name][1], name.replace(" ", "_")), with_help)
        groups.get(group, app).command(function, name=last, sort_key=place)
    return app


def config_of(name: str) -> type[Config]:
    """The config of a command."""
    kind: type[Config] = getattr(configs, COMMANDS[name][0])
    return kind


def runner(module: str, name: str) -> Command:
    """A function that imports and runs a command and shows its result. So --help imports no torch."""

    def run(config: Config) -> None:
        with doing("loading PyTorch and diffusers"):
            place = module if module == "server" else f"commands.{module}"
            command = getattr(import_module(f"fewstep.{place}"), name)
        show(command(config), getattr(config, "as_json", False))

    return run


def command(kind: type[Config], run: Command, with_help: bool = True) -> Callable[..., None]:
    """A function for cyclopts. The fields of `kind` are its options; one field may take the arguments."""
    if with_help:
        describe(kind)
    required = any(field.is_required() for field in kind.model_fields.values())
    options = with_options(kind, with_help)
    flat: Any = Annotated[options if required else options | None, Parameter(name="*", name_transform=spelling)]

    def with_arguments(*typed: str, config: Config | None = None) -> None:
        assert kind.argument is not None
        given = config.model_dump(exclude_unset=True) if config else {}
        run(build(kind, **(given | {kind.argument[0]: typed})))

    def without_arguments(*, config: Config | None = None) -> None:
        run(build(kind, **(config.model_dump(exclude_unset=True) if config else {})))

    annotations: dict[str, Any] = {"config": flat, "return": None}
    function: Callable[..., None] = without_arguments
    if kind.argument is not None:
        field, name = kind.argument
        function = with_arguments
        annotations["typed"] = Annotated[str, Parameter(name=name, help=kind.model_fields[field].description)]
    function.__annotations__ = annotations
    function.__doc__ = kind.__doc__
    if required:
        function.__kwdefaults__ = {}
    return function


def with_options(kind: type[C], with_help: bool = True) -> type[C]:
    """The config, with instructions for cyclopts about fields that people type in a special way, and their sections."""
    fields: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        instructions: list[Any] = []
        for typed in field.metadata:
            if isinstance(typed, Typed):
                instructions.append(
                    Parameter(
                        parse=not typed.as_argument, show_default=typed.with_default, consume_multiple=typed.several
                    )
                )
        section = section_of(kind.__name__, name) if with_help else None
        if section is not None:
            instructions.append(Parameter(group=Group(section[1], sort_key=section[0])))
        if instructions:
            fields[name] = (Annotated[(field.annotation, *instructions)], field)
    return create_model(kind.__name__, __base__=kind, __doc__=kind.__doc__, **fields) if fields else kind


def spelling(field: str) -> str:
    """The option's name without leading dashes."""
    return option_name(field).removeprefix("--")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program. Returns its exit code."""
    typed = joined(sys.argv[1:] if argv is None else argv)
    names = [name for name in (" ".join(typed[:2]), *typed[:1]) if name in COMMANDS][:1]  # others would take time
    names = names or list(COMMANDS)
    with_help = len(names) > 1 or not HELP.isdisjoint(typed)
    return guarded(new_app(names, with_help), typed, {name: config_of(name) for name in names})


def joined(typed: Iterable[str]) -> list[str]:
    """What was typed, with a lone - as the value of the option before it; cyclopts takes it for another option."""
    words: list[str] = []
    for word in typed:
        if word == "-" and words and words[-1].startswith("--") and "=" not in words[-1]:
            words[-1] += "=-"
        else:
            words.append(word)
    return words


def main_of(kind: type[Config], run: Command, argv: Sequence[str] | None = None) -> int:
    """Run a program with one command, such as those in recipes/. Returns its exit code."""
    app = App(
        help=kind.__doc__,
        help_format="plaintext",
        version_flags=(),
        default_parameter=OPTIONS,
        suppress_keyboard_interrupt=False,
    )
    app.default(command(kind, run))
    return guarded(app, sys.argv[1:] if argv is None else argv, {"": kind})


def guarded(app: App, argv: Sequence[str], kinds: Mapping[str, type[Config]]) -> int:
    """Run `app`. Returns the exit code. Every expected error becomes one line and a hint on stderr.

    kinds: command -> its config. A program with one command has the name "".
    """
    sink = Terminal()
    try:
        with termination_as_ctrl_c(), telling(sink):
            if all("loras" in kind.model_fields for kind in kinds.values()):
                refuse_loose_lora(argv)
            app(list(argv), exit_on_error=False, print_error=False, result_action="return_value")
        return 0
    except FewstepError as error:
        return complain(error)
    except ValidationError as error:
        return complain(usage_error(error, next(iter(kinds.values())) if len(kinds) == 1 else None))
    except CycloptsError as error:
        kind = kinds.get(" ".join(error.command_chain or ()))
        return complain(explained(error, kind, argv))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.filename is None:
            raise
        return complain(FewstepError(f"{error.filename}: {error.strerror}", "check the path"))
    except KeyboardInterrupt:
        return complain(FewstepError("stopped", "no half-written file was left"), 130)
    finally:
        sink.close()


def refuse_loose_lora(argv: Sequence[str]) -> None:
    """Raise UsageError for `--lora FILE 0.8` and `--lora FILE OTHER:0.8`, whose last word would be a prompt."""
    words = [part for word in argv for part in (word.split("=", 1) if word.startswith("--lora=") else (word,))]
    for name, file, after in zip(words, words[1:], words[2:], strict=False):
        if name != "--lora":
            continue
        if NUMBER.fullmatch(after) and not NUMBER.fullmatch(file.rpartition(":")[2]):
            raise UsageError(
                f"--lora {file} {after}: the weight stands apart from the file", f"write --lora {file}:{after}", "loras"
            )
        if WEIGHED.fullmatch(after):
            raise UsageError(
                f"--lora {file} {after}: only one LoRA follows --lora", f"write --lora {file} --lora {after}", "loras"
            )


@contextmanager
def termination_as_ctrl_c() -> Iterator[None]:
    """Inside the block, a termination signal raises KeyboardInterrupt, so that half-written files are removed."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is None:
        yield  # only the main thread may handle signals; None means a handler that Python did not set
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def interrupt(number: int, frame: object) -> None:
    """Do the same as Ctrl-C."""
    raise KeyboardInterrupt


def complain(error: FewstepError, exit_code: int | None = None) -> int:
    """Print the error as one line, a blank line and a hint. Returns the exit code."""
    print(f"error: {error.spelled(option_name)}", file=sys.stderr)
    return error.exit_code if exit_code is None else exit_code


def explained(error: CycloptsError, kind: type[Config] | None, argv: Sequence[str]) -> UsageError:
    """The UsageError for a mistake on the command line. kind: config of the command in argv; None without one."""
    if kind is not None and (known := answers(kind, argv)):
        texts = [text if len(known) == 1 else f"{option}: {text}" for option, text in known.items()]
        return UsageError(f"unknown option{'s' * (len(known) > 1)}: {', '.join(known)}", "; ".join(texts))
    if isinstance(error.__cause__, ValidationError):
        return usage_error(error.__cause__, kind)
    text = re.sub(r'^Command "[^"]*" parameter ', "", " ".join(str(error).split()))
    if missing := re.fullmatch(r"(--\S+) requires an argument\.?", text):
        text = f"{missing[1]} {'needs a value' if missing[1] in argv else 'is required'}"
    text = re.sub(r"\s*Available commands: .*$", "", text)  # which is cut short; --help has them all
    text = re.sub(r"^Unused Tokens: \['(.*?)'(?:, .*)?\]\.?$", r"\1 belongs to no option", text)
    suggestion = re.search(r"option: -*(\S+)\. Did you mean -*(\S+)\?$", text)
    if suggestion and SequenceMatcher(None, suggestion[1], suggestion[2]).ratio() < ALIKE:
        text = text[: text.index(" Did you mean")]
    what = "commands" if text.startswith("Unknown command") else "options"
    return UsageError(text[0].lower() + text[1:].rstrip("."), f"see --help for the {what}")


def entry() -> None:
    """Run the console command `fewstep`."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # torch reads it on import, which comes later
    hush()
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names may have letters that the terminal lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    code = main()
    gc.freeze()  # torch's objects go with the process: collecting them at the end takes more than a second
    sys.exit(code)
