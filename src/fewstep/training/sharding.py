"""Divides a frozen network among the processes of a run."""

from typing import Any

from fewstep.configs import AdapterConfig
from fewstep.data.cache.processes import this_process
from fewstep.errors import UsageError, option
from fewstep.training.frozen import storage_of

BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D")  # classes whose weights are gathered together


def check_shard(config: AdapterConfig) -> None:
    """Raise UsageError for --shard in one process, and for packed weights, which cannot be divided."""
    if not config.shard:
        return
    if this_process().of == 1:
        raise UsageError(
            f"{option('shard')} divides the weights among several processes, and there is one",
            "start it with torchrun or accelerate launch, or leave it out",
        )
    if storage_of(config) != config.precision:
        raise UsageError(
            f"{option('shard')} divides only weights that are kept in {option('precision')},"
            f" not in {config.frozen_weights}",
            f"leave out {option('frozen_weights')}, or {option('shard')}",
        )


def divide(network: Any) -> None:
    """Leave in each process a share of every weight of a frozen network, in place (FSDP2).

    A block's weights are gathered from all processes while it computes, forwards and backwards, and dropped then.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(network.device.type, (this_process().of,))
    for module in network.modules():
        if type(module).__name__ in BLOCKS:
            fully_shard(module, mesh=mesh)
    fully_shard(network, mesh=mesh)
