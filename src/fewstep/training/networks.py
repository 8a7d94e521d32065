"""The networks of a run: those that are trained, those they are compared with, and the export of the result.

All of them start from one model: they are LoRAs on one frozen network, or whole networks. The model itself stays as it
was.
"""

import copy
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fewstep.configs import AdapterConfig
from fewstep.diffusion.guidance import Conditioning, Network
from fewstep.errors import UsageError, option
from fewstep.events import doing
from fewstep.io import atomic_folder, write_json
from fewstep.lora.files import load_adapter
from fewstep.lora.fitting import check_made_for
from fewstep.lora.layers import LoraLayers, initial, module_shapes, target_shapes
from fewstep.lora.low_rank import Adapter, LowRank
from fewstep.lora.recipe import Recipe
from fewstep.lora.writing import save_adapter
from fewstep.models.load import DTYPES, RECIPE_FILE
from fewstep.models.model import Model
from fewstep.models.network import UNetNetwork, embed_guidance
from fewstep.models.plugging import as_found
from fewstep.models.quiet import quiet
from fewstep.models.references import LoraReference
from fewstep.models.single_file import save_folder
from fewstep.models.stepping import scheduler_of, write_scheduler
from fewstep.session.plan import plan_sampling
from fewstep.training.dropout import sample_masking
from fewstep.training.frozen import pack, storage_of
from fewstep.training.players import Average, Decay, Trainable, average_of
from fewstep.training.sharding import divide

STUDENT, TARGET, EXPORT = "student", "target", "export"


class Networks(Protocol):
    """The networks from which a method builds its players."""

    @property
    def teacher(self) -> Network:
        """The original model."""

    def trainable(self, name: str, w_embedding: bool = False) -> Trainable:
        """New weights to train. They start as the model's; the student's start as --init-lora, if it is given.

        w_embedding: the network gets guidance as a new input; not possible for a LoRA.
        A loss that evaluates several networks must call the trained one last, so that the LoRAs it switched on stay on
        for the backward pass.
        """

    def network(self, name: str) -> Network:
        """The trainable of this name as a network, for another player's loss, or without gradients."""

    def following(self, name: str, decay: Decay) -> Network:
        """The average of the trainable of this name, as a network."""

    def export(self, out: Path, recipe: Recipe) -> None:
        """Write the student's average under `out`. For a LoRA, A and B are averaged separately (see Average)."""


@contextmanager
def networks_of(model: Model, config: AdapterConfig, with_teacher: bool, own: bool = False) -> Iterator[Networks]:
    """The networks of a run on `model`. After the block, the model is as it was before, also after an error.

    with_teacher: whether training evaluates the original weights.
    own: whether the model belongs to the run, so that its weights may change for good if this saves memory.
    """
    unet = model.unet if config.full else frozen_network(model.unet, config, own)
    with as_found(unet):
        unet.eval().requires_grad_(False)
        if config.full:
            yield WholeNetworks(model, config, in_place=own and not with_teacher)
        else:
            networks = LoraNetworks(model, unet, config)
            try:
                yield networks
            finally:
                networks.layers.remove()


@doing("preparing the networks")
@quiet()
def frozen_network(unet: Any, config: AdapterConfig, own: bool) -> Any:
    """The network for LoRAs: its weights are kept as --frozen-weights says, and it computes in --precision.

    own: whether `unet` may become it. Otherwise it is a copy, if anything must change.
    """
    dtype, storage = DTYPES[config.precision], storage_of(config)
    packs, casts = DTYPES.get(storage) != dtype, unet.dtype != dtype
    if not own and (packs or casts or config.shard):
        unet = copy.deepcopy(unet)
    if packs:
        pack(unet, storage, dtype)
    elif casts:
        unet.to(dtype)
    if config.shard:
        divide(unet.requires_grad_(False))
    elif own and unet.device.type != "mps":
        unet.to(memory_format=torch.channels_last)  # convolutions are faster so
    return unet


class LoraNetworks:
    """LoRAs on the layers of one frozen network, which plays every role: W0 + B A."""

    def __init__(self, model: Model, unet: Any, config: AdapterConfig) -> None:
        """unet: the frozen network, in the type for computing."""
        self.model, self.config, self.layers = model, config, LoraLayers(unet)
        self._network = UNetNetwork(unet)
        self._trainable: dict[str, Trainable] = {}
        self.scale = (config.lora_alpha or config.rank) / config.rank  # of trained LoRAs; 1 unless --lora-alpha says
        if config.gradient_checkpointing:
            unet.enable_gradient_checkpointing()

    @property
    def teacher(self) -> Network:
        return SwitchedNetwork(self._network, self.layers)

    @doing("preparing the networks")
    def trainable(self, name: str, w_embedding: bool = False) -> Trainable:
        assert not w_embedding, "the config refuses it"
        if name == STUDENT:
            updates = initial_updates(self.model, self.config)
        else:
            updates = initial(target_shapes(self.model.unet, self.config.modules), self.config.rank, self.config.seed)
        self.layers.add(name, updates, trainable=True)
        self.layers.to(self.model.device)
        parameters = self.layers.parameters_of(name)
        module = LoraStudent(self._network, self.layers, (name, self.scale), self.config)
        self._trainable[name] = Trainable(module, parameters, {EXPORT: average_of(parameters, self.config.ema)})
        return self._trainable[name]

    def network(self, name: str) -> Network:
        return SwitchedNetwork(self._network, self.layers, (name, self.scale))

    def following(self, name: str, decay: Decay) -> Network:
        own = f"{TARGET} of {name}"
        self.layers.add(
            own, {module: LowRank(*(x.clone() for x in u)) for module, u in self.layers.updates_of(name).items()}
        )
        self._trainable[name].averages[TARGET] = Average(decay, dict(self.layers.parameters_of(own)))
        return SwitchedNetwork(self._network, self.layers, (own, self.scale))

    def export(self, out: Path, recipe: Recipe) -> None:
        shadow = self._trainable[STUDENT].averages[EXPORT].shadow
        names = self.layers.updates_of(STUDENT)
        modules = {name: LowRank(shadow[f"{name}/A"], shadow[f"{name}/B"] * self.scale) for name in names}
        save_adapter(out / "lora.safetensors", Adapter(modules), recipe)


class SwitchedNetwork:
    """A network that switches on certain LoRAs for each call. Without LoRAs it is the bare network."""

    def __init__(self, network: UNetNetwork, layers: LoraLayers, *switch: tuple[str, float]) -> None:
        self.network, self.layers, self.switch = network, layers, switch

    def __call__(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        with self.layers.using(*self.switch), own_types(x):
            return self.network(x, t, conditioning)  # type: ignore[no-any-return]


def own_types(x: Tensor) -> torch.autocast:
    """Inside the block, no autocast: the frozen network has the type for computing, and casts its LoRAs to it."""
    return torch.autocast(x.device.type, enabled=False)


class LoraStudent(nn.Module):
    """The frozen network with a trained LoRA. It stays switched on, because the backward pass may run layers again."""

    def __init__(
        self, network: UNetNetwork, layers: LoraLayers, adapter: tuple[str, float], config: AdapterConfig
    ) -> None:
        """adapter: the LoRA's name and weight."""
        super().__init__()
        self.network, self.layers, self.adapter, self.config = network, layers, adapter, config

    def forward(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        rate = self.config.lora_dropout
        self.layers.switch = (self.adapter,)
        self.layers.masking = sample_masking(x, rate, self.config.seed) if rate else None
        with own_types(x):
            return self.network(x, t, conditioning)  # type: ignore[no-any-return]


class WholeNetworks:
    """Copies of the whole network, in float32."""

    def __init__(self, model: Model, config: AdapterConfig, in_place: bool) -> None:
        """in_place: whether the student is the model's own network. Then there is no teacher."""
        self.model, self.config, self.in_place = model, config, in_place
        self._trainable: dict[str, Trainable] = {}

    @property
    def teacher(self) -> Network:
        assert not self.in_place, "a method with a teacher says so"
        return UNetNetwork(self.model.unet)

    @doing("preparing the networks")
    def trainable(self, name: str, w_embedding: bool = False) -> Trainable:
        unet = self.model.unet if self.in_place and name == STUDENT else copy.deepcopy(self.model.unet)
        if w_embedding:
            embed_guidance(unet)
        module = UNetNetwork(unet.float().requires_grad_(True))
        if self.config.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        parameters = dict(unet.named_parameters())
        self._trainable[name] = Trainable(module, parameters, {EXPORT: average_of(parameters, self.config.ema)})
        return self._trainable[name]

    def network(self, name: str) -> Network:
        module: Network = self._trainable[name].module
        return module

    def following(self, name: str, decay: Decay) -> Network:
        trainable = self._trainable[name]
        target: UNetNetwork = copy.deepcopy(trainable.module).requires_grad_(False)  # type: ignore[assignment]
        trainable.averages[TARGET] = Average(decay, dict(target.unet.named_parameters()))
        return target

    def export(self, out: Path, recipe: Recipe) -> None:
        student = self._trainable[STUDENT]
        unet: Any = copy.deepcopy(student.module.unet)
        unet.load_state_dict(student.averages[EXPORT].shadow, strict=False)
        save_model(out / "model", self.model, unet, recipe)


def initial_updates(model: Model, config: AdapterConfig) -> dict[str, LowRank]:
    """The student's LoRA at the start: untrained, or --init-lora, which must fit."""
    shapes = target_shapes(model.unet, config.modules)
    for end in config.modules.split(","):
        if not target_shapes(model.unet, end):
            raise UsageError(
                f"{option('modules')} {end}: the network of {model.path} has no such layers",
                f"use {option('modules')} all",
            )
    if config.init_lora is None:
        return initial(shapes, config.rank, config.seed)
    modules = module_shapes(model.unet)
    adapter, recipe = load_adapter(LoraReference(config.init_lora, 1.0).file, modules)
    check_made_for(adapter, recipe, modules, str(config.init_lora), str(model.path), model.prediction_type)
    ranks = sorted({adapter.size(name).rank for name in adapter.modules})
    if ranks != [config.rank]:
        raise UsageError(
            f"{option('rank')} {config.rank} differs from {config.init_lora}, which has {ranks}",
            f"use {option('rank')} {ranks[0]}",
        )
    if config.modules != "all" and (others := adapter.modules.keys() - shapes.keys()):
        raise UsageError(
            f"{option('modules')} {config.modules}: {config.init_lora} also adapts others, such as {min(others)}",
            f"leave out {option('modules')}",
        )
    scale = (config.lora_alpha or config.rank) / config.rank
    return {name: LowRank(A, B / scale) for name, (A, B) in adapter.modules.items()}


@doing("writing the model")
@quiet()
def save_model(folder: Path, model: Model, unet: Any, recipe: Recipe) -> None:
    """Write a copy of the model's folder with this UNet, in half precision, and this recipe, whole or not at all.

    If LCM's solver samples it and it takes guidance as an input, it is a folder of LatentConsistencyModelPipeline.
    """
    with atomic_folder(folder) as temporary:
        if model.path.is_file():
            save_folder(model, temporary)
        else:
            left_out = ["*.bin", "unet"] + (["*.safetensors", "config.json"] if not model.takes_text else [])
            shutil.copytree(model.path, temporary, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*left_out))
        unet.to(torch.float16).save_pretrained(temporary / "unet")
        write_json(temporary / RECIPE_FILE, recipe.model_dump(mode="json"))
        if unet.config.get("time_cond_proj_dim") is not None and recipe.solver == "lcm":
            write_scheduler(temporary, lcm_scheduler(temporary, model, recipe), True)


def lcm_scheduler(folder: Path, model: Model, recipe: Recipe) -> Any:
    """diffusers' LCMScheduler with the recipe's training grid. folder: has the model's own scheduler."""
    plan = plan_sampling(model.schedule, [recipe], embeds_guidance=True)
    points = len(model.schedule) // plan.k
    return scheduler_of(folder, model.prediction_type, plan.solver_name, plan.timesteps, points)[1]
