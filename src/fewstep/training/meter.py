"""What a computation takes, found by running it on stand-ins for tensors, which have shapes and no values."""

import time
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


class Shaped(NamedTuple):
    """A tensor's layout."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: str

    def made(self) -> Tensor:
        """A tensor of this layout, with small values."""
        x = torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=self.device)
        return x.fill_(0.01 if self.dtype.is_floating_point else 0)


class Operation(NamedTuple):
    """A call of one of torch's operations."""

    function: Any
    arguments: tuple[Any, ...]  # with a Shaped for each tensor
    options: dict[str, Any]

    def seconds(self) -> float:
        """How long it takes on this machine, the second time."""
        arguments, options = tree_map(_made, (self.arguments, self.options), is_leaf=_is_shaped)
        self.function(*arguments, **options)
        begun = time.perf_counter()
        made = self.function(*arguments, **options)
        for x in tree_leaves(made):
            if isinstance(x, Tensor) and x.is_cuda:
                torch.cuda.synchronize()
        return time.perf_counter() - begun

    @property
    def values(self) -> int:
        """The number of values in the tensors that it is given."""
        leaves = tree_leaves((self.arguments, self.options), is_leaf=_is_shaped)
        return sum(prod(x.shape) for x in leaves if isinstance(x, Shaped))


def _is_shaped(value: Any) -> bool:
    return isinstance(value, Shaped)


def _made(value: Any) -> Any:
    return value.made() if isinstance(value, Shaped) else value


def _shaped(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return Shaped(tuple(value.shape), value.stride(), value.dtype, str(value.device))


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is on, counts the bytes of the tensors that are alive, and the operations that make or change some."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0  # bytes
        self.calls = 0  # of all operations, views too
        self.counts: Counter[str] = Counter()  # operation, in words -> how often
        self.operations: dict[str, Operation] = {}  # by the same words
        self._known: weakref.WeakKeyDictionary[Any, None] = weakref.WeakKeyDictionary()  # memory that is counted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.calls += 1
        new = [x for x in tree_leaves(made) if isinstance(x, Tensor) and self._take(x)]
        if new or func._schema.is_mutable:
            arguments, options = tree_map(_shaped, (tuple(args), dict(kwargs or {})))
            words = f"{func} {arguments} {options}"
            self.counts[words] += 1
            self.operations.setdefault(words, Operation(func, arguments, options))
        return made

    def _take(self, x: Tensor) -> bool:
        """Count the memory of a tensor until it is freed. Returns whether it is new."""
        storage = x.untyped_storage()
        if storage in self._known:
            return False
        self._known[storage] = None
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, size)
        return True

    def _free(self, size: int) -> None:
        self.live -= size


@contextmanager
def stand_ins() -> Iterator[Meter]:
    """Inside the block, new tensors are stand-ins without values, and the meter counts what they would take.

    torch cannot convert modules of stand-ins that something else refers to, so here they get new parameters instead.
    """
    before = nn.Module._apply
    nn.Module._apply = _converted  # type: ignore[method-assign]
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), Meter() as meter, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Accessing the data pointer")  # by copy.deepcopy
            yield meter
    finally:
        nn.Module._apply = before  # type: ignore[method-assign]


def _converted(module: nn.Module, convert: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    for child in module.children() if recurse else ():
        child._apply(convert)  # type: ignore[no-untyped-call]
    for tensors in (module._parameters, module._buffers):
        for name, x in tensors.items():
            made = x if x is None else convert(x)
            if made is not x and made is not None:
                is_parameter = isinstance(x, nn.Parameter)
                tensors[name] = nn.Parameter(made.detach(), x.requires_grad) if is_parameter else made  # type: ignore
    return module
