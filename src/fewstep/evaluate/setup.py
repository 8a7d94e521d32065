"""What a comparison draws and measures with: a model, opened once, and its prompts; and the pictures of its rows."""

import time
from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any, NamedTuple

from torch import Tensor

from fewstep.configs import CompareConfig
from fewstep.data.prompts import Prompt, Prompts
from fewstep.engines import for_changing_loras
from fewstep.errors import UsageError, option
from fewstep.evaluate import best_guidance
from fewstep.evaluate.best_guidance import TriedGuidance
from fewstep.evaluate.evidence import Pace, in_words
from fewstep.evaluate.measure import DIVERSE_IMAGES, DIVERSE_PROMPTS, Tools, load_tools
from fewstep.evaluate.prompts import prompts_for
from fewstep.evaluate.protocol import surroundings
from fewstep.evaluate.row_pictures import WHOLE, Portion, RowPictures, draw, draw_batch, time_of
from fewstep.evaluate.rows import RowSpec, draw_of, loras_of, naming
from fewstep.evaluate.teacher import OTHER_NOISE, QUARTERS, TeacherSide, teacher_side
from fewstep.events import doing, note
from fewstep.metrics.features import FeatureNetwork, Quarters, device_of, features_of
from fewstep.metrics.frechet import needed
from fewstep.models.load import takes_text
from fewstep.models.model import parts_sha256
from fewstep.session import Session

TEACHER = RowSpec("ddim:100", "ddim", 100, None, ())


class Setup(NamedTuple):
    """What a comparison is made with."""

    config: CompareConfig  # as the protocol has it: a dtype that is not auto
    session: Session
    source: str  # of the prompts
    listed: tuple[Prompt, ...]
    around: dict[str, Any]  # what decides pixels and times beside what a row says
    tools: Tools

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """One for each image of a seed set."""
        return tuple(islice(cycle(self.listed), self.config.images))

    @property
    def texts(self) -> tuple[str, ...]:
        """Theirs."""
        return tuple(prompt.text for prompt in self.prompts)

    @property
    def paired(self) -> int:
        """How many pictures of the teacher's the rows are beside, from the same noise, by LPIPS."""
        return min(self.config.images, self.config.lpips_images) if self.tools.lpips else 0

    def texts_of_teacher(self) -> tuple[str, ...]:
        """One for each of the teacher's own pictures, the same prompts in the same order."""
        return tuple(prompt.text for prompt in islice(cycle(self.listed), self.config.teacher_images))


class RowResult(NamedTuple):
    """What a row drew."""

    pictures: RowPictures
    diverse: RowPictures | None  # several images of each of a few prompts; None without LPIPS
    search: tuple[TriedGuidance, ...] | None  # None of a row that does not ask for its best guidance


def setup_of(config: CompareConfig) -> Setup:
    """The model and what measures, loaded."""
    listed = prompts_for(config.prompt_file, config.reference) if takes_text(config.model) else without_text(config)
    prompts = tuple(islice(cycle(listed.prompts), config.images))
    engine = for_changing_loras(config.engine)
    session = Session(config.model, (), engine=engine, dtype=config.dtype, device=config.device)
    config = config.model_copy(update={"dtype": session.engine.dtype})
    size, device = session.facts.size, session.engine.device
    around = surroundings(parts_sha256(session.facts.path), device)
    clip = config.clip_model if config.clip_score else None
    tools = load_tools(config.reference, prompts, size, config.images, config.seed_sets, device, clip,
                       config.teacher_images)  # fmt: skip
    return Setup(config, session, listed.source, listed.prompts, around, tools)


def without_text(config: CompareConfig) -> Prompts:
    """The empty prompt, for a model that takes no text. Raises UsageError for prompts and guidance."""
    if config.prompt_file is not None:
        raise UsageError(f"{option('prompt_file')}: {config.model} draws without a prompt", "leave it out")
    return Prompts((Prompt(""),), "none, since the model takes no text")


# --- the teacher --------------------------------------------------------------------------------------------


def draw_teacher(setup: Setup, texts: Sequence[str], seed: int = 0, part: Portion = WHOLE) -> RowPictures:
    """What the model without LoRAs draws with many steps and the guidance that it recommends, or that was given."""
    teacher = TEACHER._replace(guidance_scale=setup.config.teacher_guidance)
    setup.session.plug(())
    wish = draw_of(teacher, setup.config, tuple(texts)).model_copy(update={"seed": seed})
    return draw(setup.session, setup.session.plan(wish), wish, setup.around, f"teacher {TEACHER.text}", part)


def draw_paired(setup: Setup, part: Portion = WHOLE) -> RowPictures:
    """The teacher's pictures from the noise of the rows' first."""
    return draw_teacher(setup, setup.texts[: setup.paired], part=part)


def side_of_teacher(setup: Setup) -> TeacherSide | None:
    """The teacher's own pictures from other noise; None where none were asked for, or nothing looks at them."""
    texts = setup.texts_of_teacher()
    if not texts or setup.tools.inception is None:
        return None
    return teacher_side(draw_teacher(setup, texts, OTHER_NOISE), texts, setup.tools.inception)


# --- rows ---------------------------------------------------------------------------------------------------


def draw_rows(setup: Setup, specs: Sequence[RowSpec]) -> list[RowResult]:
    """What each row draws, the rows with the same LoRAs one after another, so that each LoRA is plugged in once."""
    results: dict[int, RowResult] = {}
    loras = [loras_of(spec, setup.config.model) for spec in specs]
    for group in dict.fromkeys(loras):
        with naming(specs[loras.index(group)]):
            setup.session.plug(group)
        for number, spec in enumerate(specs):
            if loras[number] == group:
                results[number] = draw_row(setup, spec)
    pictures = time_rows(setup, specs, [results[number].pictures for number in range(len(specs))])
    return [results[number]._replace(pictures=one) for number, one in enumerate(pictures)]


def draw_row(setup: Setup, spec: RowSpec, part: Portion = WHOLE) -> RowResult:
    """The images of a row at its guidance, all seed sets in a sequence, and those its diversity is told by."""
    session, config, search = setup.session, setup.config, None
    texts = setup.texts * config.seed_sets
    if spec.best:
        search = search_guidance(setup, spec, texts)
        spec = spec._replace(guidance_scale=best_guidance.best_of(search))
    wish = draw_of(spec, config, texts)
    with naming(spec):
        plan = session.plan(wish)
        for text in plan.notes:
            note(f"{spec.text}: {text.marked}")
        pictures = draw(session, plan, wish, setup.around, spec.text, part)
        diverse = draw_of(spec, config, diverse_texts(setup.texts)) if setup.tools.lpips else None
        title = f"{spec.text}, diversity"
        several = draw(session, plan, diverse, setup.around, title, part) if diverse else None
        return RowResult(pictures, several, search)


def diverse_texts(texts: Sequence[str]) -> tuple[str, ...]:
    """The prompts that diversity is told by, each as often as it is drawn."""
    return tuple(text for text in islice(dict.fromkeys(texts), DIVERSE_PROMPTS) for _ in range(DIVERSE_IMAGES))


def time_rows(setup: Setup, specs: Sequence[RowSpec], pictures: Sequence[RowPictures]) -> list[RowPictures]:
    """The rows with times of now: config.timing_rounds times a batch of each, in turn, so that load sways all alike."""
    session, config = setup.session, setup.config
    batch = setup.texts[: config.batch_size]
    times: list[list[dict[str, Any]]] = [[] for _ in specs]
    for _ in range(config.timing_rounds):
        for spec, one, found in zip(specs, pictures, times, strict=True):
            session.plug(loras_of(spec, config.model))
            found.append(time_of(session, one.plan, draw_of(spec._replace(guidance_scale=None), config, batch)))
    return [
        one._replace(timed=tuple(found), timed_first=tuple(times[0]))
        for one, found in zip(pictures, times, strict=True)
    ]


def search_guidance(setup: Setup, spec: RowSpec, texts: tuple[str, ...]) -> tuple[TriedGuidance, ...]:
    """What the row's first images are at each guidance of the grid; texts: of all its images."""
    session, config = setup.session, setup.config

    def draw_at(guidance_scale: float, count: int) -> RowPictures:
        wish = draw_of(spec._replace(guidance_scale=guidance_scale), config, texts[:count])
        return draw(session, session.plan(wish), wish, setup.around, f"{spec.text}, guidance {guidance_scale:g}")

    with naming(spec):
        search = best_guidance.tried(config, setup.tools, draw_at)
    for text in best_guidance.at_the_end(spec.text, best_guidance.entries(search)):
        note(text)
    return search


# --- a share of the work, for one of several processes ------------------------------------------------------


def draw_part(config: CompareConfig, specs: Sequence[RowSpec], part: Portion) -> None:
    """Draw the batches of a comparison that are this part, and look at them; `compared` then finds them.

    No row may ask for its best guidance, which needs all of its pictures.
    """
    setup = setup_of(config)
    inception, efficientnet, texts = setup.tools.inception, setup.tools.efficientnet, setup.texts_of_teacher()
    if inception and texts:
        own = draw_teacher(setup, texts, OTHER_NOISE, part)
        look_at(own, inception)
        look_at_quarters(setup, own, len(texts), part)
    if setup.paired:
        draw_paired(setup, part)
    for spec in specs:
        setup.session.plug(loras_of(spec, config.model))
        pictures = draw_row(setup, spec, part).pictures
        look_at(pictures, inception, efficientnet)
        look_at_quarters(setup, pictures, config.images * config.seed_sets, part)


def look_at(pictures: RowPictures, *networks: FeatureNetwork | None) -> None:
    """Keep the features of the pictures."""
    for network in networks:
        if network and pictures.files:
            features_of(network, pictures)


def look_at_quarters(setup: Setup, pictures: RowPictures, count: int, part: Portion) -> None:
    """Keep the features of the quarters that `teacher.quarter_statistics` needs of `count` pictures, of this part."""
    inception, first = setup.tools.inception, count // QUARTERS
    if inception is None or not setup.config.teacher_images or first * QUARTERS < needed(inception.dim):
        return
    batches = -(-first // setup.config.batch_size)
    own = len(range(part[0], batches, part[1]))
    if own:
        features_of(inception, Quarters(pictures._replace(files=pictures.files[:own], facts=pictures.facts[:own])))


# --- before -------------------------------------------------------------------------------------------------


@doing("timing a batch")
def pace_of(setup: Setup) -> Pace:
    """How long things take on this machine, by a batch of one step, after another that warms up."""
    session, tools = setup.session, setup.tools
    session.plug(())
    probe = RowSpec("ddim:1", "ddim", 1, 1.0, ())
    wish = draw_of(probe, setup.config, tuple(islice(cycle(setup.texts), setup.config.batch_size)))
    plan = session.plan(wish)
    draw_batch(session, plan, wish)
    pixels, facts = draw_batch(session, plan, wish)
    seconds, count = facts["seconds"], facts["images"]
    networks = [network for network in (tools.inception, tools.efficientnet) if network]
    return Pace(
        network=seconds["network"] / count,
        rest=(seconds["text"] + seconds["decoder"]) / count,
        features=sum(seconds_of(network, pixels) for network in networks) / count,
    )


def seconds_of(network: FeatureNetwork, pixels: Tensor) -> float:
    """How long a network looks at a batch; the second time, as the first warms up."""
    device, times = device_of(network), []
    for _ in range(2):
        begun = time.perf_counter()
        network(pixels.to(device)).cpu()
        times.append(time.perf_counter() - begun)
    return times[-1]


def forecast(setup: Setup, specs: Sequence[RowSpec]) -> str:
    """In words how long the comparison will take."""
    config = setup.config
    seconds = pace_of(setup).seconds(specs, config, TEACHER, setup.paired)
    return in_words(seconds, len(specs), config)
