"""Runs a function in a process that does nothing else, so that its memory and the state of its machine are its own."""

import pickle
import signal
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from traceback import format_exception
from typing import TypeVar, TypeVarTuple, cast

from fewstep.errors import FewstepError, option
from fewstep.events import hush

END_S = 10.0  # for which a process that has answered is given time to end
Arguments = TypeVarTuple("Arguments")
R = TypeVar("R")


def in_own_process(function: Callable[[*Arguments], R], *arguments: *Arguments) -> R:
    """The function's result, from a process that does nothing else. Its errors are raised here."""
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    packed = pickle.dumps((function, arguments))  # so that the process is quiet before it imports what they need
    process = context.Process(target=_answer, args=(sender, packed), daemon=True)
    process.start()
    sender.close()  # so that its end is seen here when the process has ended
    try:
        result = receiver.recv()
        process.join(END_S)  # else what it took of the system's would be missed when this program ends
    except EOFError:
        raise FewstepError(
            "the process ended by itself, perhaps for lack of memory",
            f"close other programs, or measure a smaller picture with {option('width')} and {option('height')}",
        ) from None
    finally:
        process.kill()
        process.join()
    if isinstance(result, BaseException):
        raise result
    return cast(R, result)


def _answer(sender: Connection, packed: bytes) -> None:
    """Send the packed function's result, or its error. Ctrl-C is the other process's: it ends this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    hush()
    result: object
    try:
        function, arguments = pickle.loads(packed)
        result = function(*arguments)
    except FewstepError as error:
        result = error
    except Exception as error:  # of any library, which another process may not be able to read
        result = RuntimeError("".join(format_exception(error)))
    sender.send(result)
