"""The Session. All commands and programs draw with it. It is opened once, used many times, and closed at the end."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from types import TracebackType
from typing import Self, Unpack, cast

from PIL import Image
from torch import Tensor

from fewstep import __version__
from fewstep.configs import Draw, DrawOptions, Where, WhereOptions, build, draw_of
from fewstep.configs.draw import picture_bytes
from fewstep.diffusion.guidance import Conditioning, concatenate
from fewstep.diffusion.sampler import ImageNoise
from fewstep.diffusion.solvers.base import Noise
from fewstep.engines import DEFAULT, Engine, Facts, NetworkOptions, check_supported, chosen, open_engine
from fewstep.errors import FewstepError, UsageError, option
from fewstep.events import Preview, Progress, Sink, note, tell, telling
from fewstep.lora.recipe import Recipe
from fewstep.models.exported import exported_for
from fewstep.session.canvas import Canvas, canvas_of, strength_of
from fewstep.session.decoders import decoder_of
from fewstep.session.drawing import (
    Lap,
    Picture,
    PictureBatch,
    batches,
    decoded,
    draw_latents,
    previewed,
)
from fewstep.session.loras import LoraFacts, PluggedLora, Shelf, default_loras, recipes_of
from fewstep.session.plan import Plan, plan_sampling, without_text
from fewstep.session.recipe import PictureRecipe, started_from
from fewstep.session.streaming import ANY_FRAME, Stream, check_stream

TEXTS = 64  # whose embeddings a session remembers; 40 MB for SDXL


def untimed(part: str) -> None:
    """Do nothing at the end of a part."""


class Session:
    """A model on an engine with LoRAs plugged in.

        with Session("sd15", loras=["lcm-lora-sdv1-5", "papercut:0.8"]) as session:
            for picture in session.draw("a red fox in the snow", steps=4, seed=7, count=4):
                picture.image.save(f"{picture.recipe['seed']}.png")

    Only one thread at a time may use it.
    """

    def __init__(
        self,
        model: str = "emoji",
        loras: Sequence[str] | None = None,
        *,
        sink: Sink | None = None,
        **options: Unpack[WhereOptions],
    ) -> None:
        """The arguments are the fields of `Where`. sink: gets the events; None = the sink that is in force.

        loras: FILE or FILE:WEIGHT each; None = emoji's own acceleration if the solver is one for it, else none.
        Raises FewstepError for a file that is missing or does not fit, and UsageError for an impossible value.
        """
        self._start(where_of(model, loras, options), None, sink)

    @classmethod
    def open(cls, where: Where, sink: Sink | None = None) -> Self:
        """The session that `where` describes."""
        session = cls.__new__(cls)
        session._start(where, None, sink)
        return session

    @classmethod
    def on(cls, engine: Engine, where: Where, sink: Sink | None = None) -> Self:
        """A session on an engine that already has its model. Only the LoRAs of `where` are loaded."""
        session = cls.__new__(cls)
        session._start(where, engine, sink)
        return session

    def _start(self, where: Where, engine: Engine | None, sink: Sink | None) -> None:
        self.where, self.sink = where, sink
        with self._telling():
            self._engine_name = where.engine if engine is not None else chosen(where)
            if where.engine == "auto" and self._engine_name not in ("auto", DEFAULT, exported_for(where.model)):
                note(
                    f"{option('engine')} auto is {self._engine_name} here, the fastest for this model on this machine;"
                    f" {option('engine')} {DEFAULT} overrules it"
                )
            engine = engine or open_engine(self._where_on(self._engine_name))
        self._engine: Engine | None = engine
        self._decode = decoder_of(where.decoder, engine)
        self._shelf = Shelf(where.model, engine.shapes, engine.facts.prediction_type, engine.original_weight)
        self._plugged: tuple[PluggedLora, ...] = ()
        self._embedded: dict[tuple[str, int, int], Conditioning] = {}  # by text, height, width; the last used is last
        self._default = where.loras is None  # whether the LoRAs follow the solver
        self.plug(where.loras)

    # --- facts --------------------------------------------------------------------------------------------------

    @property
    def engine(self) -> Engine:
        """The engine that runs the networks. Raises FewstepError once the session is closed."""
        if self._engine is None:
            raise FewstepError("the session is closed", "open another one")
        return self._engine

    @property
    def facts(self) -> Facts:
        """Facts about the model."""
        return self.engine.facts

    @property
    def loras(self) -> tuple[LoraFacts, ...]:
        """File, weight, weights of blocks and SHA-256 of each plugged LoRA."""
        return tuple(one.facts for one in self._plugged)

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """The recipes that a plan follows: the model's, if it has one, then those of LoRAs with a positive weight."""
        return recipes_of(self.facts.recipe, self._plugged)

    def close(self) -> None:
        """Release the model. A second call does nothing."""
        self._engine = None
        self._plugged, self._embedded = (), {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- LoRAs --------------------------------------------------------------------------------------------------

    def plug(self, loras: Sequence[str] | None) -> None:
        """Replace the plugged LoRAs by these: the weights become W0 + sum_i w_i B_i A_i, summed exactly.

        loras: FILE or FILE:WEIGHT each. An empty list restores the bare model, bit for bit. None = the LoRAs of a
        session that is opened without naming any. Raises FewstepError for one that is missing or does not fit; the
        session then stays as it was.
        """
        names = default_loras(self.where.model, "auto") if loras is None else names_of(loras)
        self._plug(names)
        self._default = loras is None

    def _plug(self, loras: Sequence[str]) -> None:
        with self._telling():
            taken = self._shelf.take(loras)
            if taken or self._plugged:
                self._embedded = {}  # a LoRA may change the text encoders
                self.engine.plug([one.term for one in taken])
        self._plugged = taken

    def _telling(self) -> AbstractContextManager[None]:
        """Inside the block, events go to the session's sink, if it has one."""
        return nullcontext() if self.sink is None else telling(self.sink)

    @contextmanager
    def plugged(self, *loras: str) -> Iterator[Self]:
        """Use other LoRAs inside the block. After it, the weights are as before, bit for bit."""
        before, default = self._plugged, self._default
        self.plug(loras)
        try:
            yield self
        finally:
            if self._engine is not None:
                self._embedded = {}
                self._engine.plug([one.term for one in before])
                self._plugged, self._default = before, default

    def _follow(self, solver: str) -> None:
        """Unless the user named LoRAs, plug in those that go with the solver."""
        if self._default:
            names = default_loras(self.where.model, solver)
            if names != tuple(str(one.reference.path) for one in self._plugged):
                self._plug(names)

    # --- pictures -----------------------------------------------------------------------------------------------

    def plan(self, draw: Draw) -> Plan:
        """The plan for `draw` with the plugged LoRAs. Raises UsageError for impossible options."""
        self._suit(draw)
        if not self.facts.takes_text:
            draw = without_text(draw, self.where.model)
        self._follow(draw.solver)
        return plan_sampling(
            self.facts.schedule,
            self.recipes,
            draw.solver,
            draw.steps,
            draw.guidance_scale,
            strength_of(draw),
            bool(draw.negative_prompt) and draw.nag_scale == 1,
            draw.grid,
            draw.eta,
            draw.gamma,
            draw.k,
            self.facts.embeds_guidance,
        )

    def _where_on(self, engine: str) -> Where:
        """The session's settings with this engine."""
        return self.where.model_copy(update={"engine": engine})

    def _suit(self, draw: Draw) -> None:
        """Raise UsageError for what the engine cannot draw. If auto chose the engine, go over to torch instead."""
        try:
            check_supported(self.engine.supports, draw, self._engine_name)
        except UsageError as error:
            if self.where.engine != "auto" or self._engine_name == exported_for(self.where.model):
                raise
            with self._telling():
                note(f"{error.message.marked}: {DEFAULT} draws from here on")
                engine = open_engine(self._where_on(DEFAULT))
                if self._plugged:
                    engine.plug([one.term for one in self._plugged])
            self._engine, self._engine_name = engine, DEFAULT
            self._decode, self._embedded = decoder_of(self.where.decoder, engine), {}

    def draw(self, prompts: str | Sequence[str] | Draw, **options: Unpack[DrawOptions]) -> Iterator[Picture]:
        """The pictures of the prompts, one by one as they are drawn. Picture number i has seed `seed + i`.

        prompts: one, several, or a whole `Draw`, whose fields `options` change. This call raises all errors of the
        request before anything is drawn. Notes, progress and previews go to the session's sink.
        """
        draw = draw_of(prompts, options)
        plan = self.plan(draw)
        with self._telling():
            for text in plan.notes:
                note(text)
        return self.pictures(draw, plan)

    def pictures(
        self, draw: Draw, plan: Plan, lap: Lap = untimed, seeds: Sequence[int] | None = None
    ) -> Iterator[Picture]:
        """The pictures of `draw`, with a plan that was made before.

        lap: called at the end of each part. The text of all batches is embedded first, as one part. seeds: of each
        picture, in place of those that count up.
        """
        if seeds is None:
            seeds = range(draw.seed, draw.seed + len(draw.prompts) * draw.count)
        return self._pictures(draw, plan, canvas_of(draw, self.engine), lap, seeds)

    def _pictures(self, draw: Draw, plan: Plan, canvas: Canvas, lap: Lap, every: Sequence[int]) -> Iterator[Picture]:
        engine, plugged = self.engine, self._plugged
        embeddings, empty = self._conditionings(draw, plan, canvas)
        lap("text")
        prompts = [prompt for prompt in draw.prompts for _ in range(draw.count)]
        with engine.network(NetworkOptions(draw.nag_scale, draw.control_scale)) as network:
            for first, part in batches(prompts, draw.batch_size):
                if self._plugged is not plugged:
                    raise FewstepError("other LoRAs were plugged in while pictures were drawn", "finish drawing first")
                seeds = tuple(every[first : first + len(part)])
                shape = engine.facts.latent_shape(canvas.height, canvas.width)
                batch = PictureBatch(
                    concatenate([embeddings[prompt] for prompt in part]),
                    None if empty is None else empty.expand(len(part)),
                    ImageNoise(seeds, shape, engine.device),
                )
                on_estimate = partial(self._tell, seeds, len(prompts), first, len(plan.timesteps))
                latents, rows = draw_latents(engine, network, plan, canvas, batch, on_estimate)
                lap("network")
                pixels = decoded(self._decode, latents)
                lap("decoder")
                for x, prompt, seed in zip(pixels, part, seeds, strict=True):
                    picture = self._seen(canvas.kept(x), prompt, seed)
                    yield Picture(picture, self._recipe(draw, plan, canvas, prompt, seed, rows / len(part)))

    def stream(
        self, frames: Iterable[bytes | Image.Image], prompt: str | Draw, **options: Unpack[DrawOptions]
    ) -> Iterator[Picture]:
        """The pictures of a sequence of frames, each drawn from its frame (image-to-image), in order.

        As many frames are under way at once as there are steps (see `Stream`). Each picture is the one that `draw`
        makes of its frame. This call raises all errors of the request.
        """
        draw = draw_of(prompt, {**options, "image": ANY_FRAME})
        plan = self.plan(draw)
        check_stream(draw, plan)
        return self._stream(frames, draw, plan)

    def _stream(self, frames: Iterable[bytes | Image.Image], draw: Draw, plan: Plan) -> Iterator[Picture]:
        engine, canvas = self.engine, canvas_of(draw.model_copy(update={"image": None}), self.engine)
        [prompt] = draw.prompts
        embeddings, empty = self._conditionings(draw, plan, canvas)
        with engine.network(NetworkOptions(draw.nag_scale)) as network:
            stream = Stream(engine, network, draw, plan, embeddings[prompt], empty)
            for frame in stream.results(map(picture_bytes, frames)):
                picture = self._seen(decoded(self._decode, frame.x)[0], prompt, draw.seed)
                yield Picture(picture, self._recipe(frame.draw, plan, frame.canvas, prompt, draw.seed, plan.nfe))

    def paint(self, plan: Plan, conditioning: Conditioning, noise: Noise) -> Tensor:
        """Pixels (B, 3, H, W) on the CPU for one batch, from embeddings and noise instead of prompts and seeds.

        conditioning: for B pictures of the model's own size. noise: draws (B, C, h, w); its first draw is the start.
        """
        engine, size = self.engine, self.engine.facts.size
        empty = engine.embed([""], size, size).expand(len(conditioning.text))
        batch = PictureBatch(conditioning, empty, noise)
        with engine.network(NetworkOptions()) as network:
            latents, _ = draw_latents(engine, network, plan, Canvas(size, size), batch, lambda step, x_0: None)
        return decoded(self._decode, latents)

    def _conditionings(
        self, draw: Draw, plan: Plan, canvas: Canvas
    ) -> tuple[dict[str, Conditioning], Conditioning | None]:
        """The conditioning of each prompt, and of the empty or negative one where something reads it."""
        embeddings = {text: self._conditioning(text, canvas) for text in dict.fromkeys(draw.prompts)}
        empty = self._conditioning(draw.negative_prompt, canvas) if plan.guided or draw.nag_scale > 1 else None
        if empty is not None and draw.nag_scale > 1:
            embeddings = {text: one._replace(negative=empty.text) for text, one in embeddings.items()}
            empty = empty._replace(negative=empty.text)
        return embeddings, empty

    def _conditioning(self, text: str, canvas: Canvas) -> Conditioning:
        """The conditioning of one prompt and the canvas. The last TEXTS are remembered until LoRAs are plugged."""
        key = (text, canvas.height, canvas.width)
        embedded = self._embedded.pop(key, None)
        if embedded is None:
            embedded = self.engine.embed([text], canvas.height, canvas.width)
        self._embedded[key] = embedded
        if len(self._embedded) > TEXTS:
            del self._embedded[next(iter(self._embedded))]
        return embedded._replace(mask_and_latents=canvas.mask_and_latents, control=canvas.control)

    def _tell(self, seeds: tuple[int, ...], pictures: int, first: int, steps: int, step: int, x_0: Tensor) -> None:
        """Send progress and a preview after a step of the batch that begins with picture number `first`."""
        with self._telling():
            tell(Progress("drawing", first * steps + step * len(seeds), pictures * steps, "step"))
            tell(Preview(seeds, step, steps, partial(previewed, self._decode, x_0)))

    def _seen(self, pixels: Tensor, prompt: str, seed: int) -> Tensor:
        """The pixels (3, H, W), or black and a note if the model's safety checker hides the picture."""
        if not self.engine.hides(pixels):
            return pixels
        with self._telling():
            note(f"the model's safety checker hid the picture of {prompt!r}, seed {seed}")
        return pixels.new_full(pixels.shape, -1)

    def _recipe(self, draw: Draw, plan: Plan, canvas: Canvas, prompt: str, seed: int, nfe: float) -> PictureRecipe:
        """The recipe of a picture."""
        where = self.where
        return {
            "prompt": prompt,
            "negative_prompt": draw.negative_prompt,
            "seed": seed,
            "model": where.model,
            "lora": list(self.loras),
            "live_lora": where.live_lora,
            "solver": plan.solver_name,
            "eta": plan.eta,
            "gamma": plan.gamma,
            "steps": plan.steps,
            "grid": plan.grid,
            "k": plan.k,
            "timesteps": list(plan.timesteps),
            "nfe": nfe,
            "guidance_scale": plan.guidance_scale,
            "nag_scale": draw.nag_scale,
            "image": started_from(draw.image),
            "strength": strength_of(draw) if draw.image else None,
            "mask": started_from(draw.mask),
            "outpaint": canvas.outpaint,
            "controlnet": where.controlnet,
            "control_image": started_from(draw.control_image),
            "sketch": draw.sketch,
            "control_scale": draw.control_scale if where.controlnet else None,
            "width": canvas.width,
            "height": canvas.height,
            "engine": self._engine_name,
            "dtype": self.engine.dtype,
            "decoder": where.decoder,
            "no_safety_checker": where.no_safety_checker,
            "fewstep": __version__,
        }


class SampleOptions(DrawOptions, WhereOptions, total=False):
    """The fields of `Draw` and of `Where` as keywords."""


def where_of(model: str, loras: Sequence[str] | None, options: WhereOptions) -> Where:
    """The Where of a model, LoRAs and keywords. Raises UsageError naming a bad one."""
    return build(Where, model=model, loras=None if loras is None else names_of(loras), **options)


def names_of(loras: Sequence[str]) -> tuple[str, ...]:
    """The LoRAs; one that stands alone is one."""
    return (loras,) if isinstance(loras, str) else tuple(loras)


def sample(
    prompts: str | Sequence[str],
    model: str = "emoji",
    loras: Sequence[str] | None = None,
    *,
    sink: Sink | None = None,
    **options: Unpack[SampleOptions],
) -> list[Picture]:
    """The pictures of the prompts, from a session that is opened only for them.

    The arguments are those of `Session` and `Session.draw`.
    """
    of_where = {name: value for name, value in options.items() if name in Where.model_fields}
    of_draw = {name: value for name, value in options.items() if name not in of_where}
    draw = draw_of(prompts, cast(DrawOptions, of_draw))  # a wrong keyword is named before anything is loaded
    with Session.open(where_of(model, loras, cast(WhereOptions, of_where)), sink) as session:
        return list(session.draw(draw))
