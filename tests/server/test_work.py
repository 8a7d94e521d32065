"""The queue and the worker: clients take turns, pictures of one kind are drawn together, nothing leaks between them."""

import threading
from collections.abc import Sequence

import pytest
import torch

from fewstep.configs import Draw, Where, build
from fewstep.errors import FewstepError
from fewstep.server.work import Busy, Failed, Job, PictureDone, Queue, StepDone, Unit, Worker
from fewstep.session import Session

WHERE = build(Where, dtype="fp32", device="cpu")


def job(client: str = "a", loras: tuple[str, ...] | None = None, model: str = "emoji", **options: object) -> Job:
    return Job(build(Draw, **({"prompts": ("a cat",), "steps": 2} | options)), model, loras, client)


def names(batch: Sequence[Unit]) -> list[str]:
    return [f"{unit.job.client}{unit.number}" for unit in batch]


def drawn(batches: Sequence[Sequence[Job]], batch_size: int = 8) -> list[list[object]]:
    """What each request was told, when these arrive together, one group after another."""
    queue = Queue(1000)
    worker = Worker(queue, WHERE, batch_size, 0)
    told: dict[int, list[object]] = {}
    every = [one for group in batches for one in group]
    for one in every:
        told[id(one)] = []
        one.tell = told[id(one)].append
        queue.put(one)
    queue.close()
    worker.run()
    return [told[id(one)] for one in every]


def pixels(told: Sequence[object]) -> list[torch.Tensor]:
    return [message.picture.pixels for message in told if isinstance(message, PictureDone)]


# --- the queue ----------------------------------------------------------------------------------------------


def test_clients_take_turns_whoever_came_first() -> None:
    queue = Queue(100)
    for one in (job("a", seed=1), job("a", steps=3), job("a", steps=4), job("b", steps=5)):
        queue.put(one)
    assert [names(queue.take(8, 0)) for _ in range(4)] == [["a0"], ["b0"], ["a0"], ["a0"]]


def test_pictures_of_one_kind_go_together_and_others_wait() -> None:
    queue = Queue(100)
    for one in (
        job("a", count=2),
        job("b", width=64),
        job("c", prompts=("a dog",), seed=5),
        job("d", loras=("lcm:1",)),
    ):
        queue.put(one)
    assert names(queue.take(8, 0)) == ["a0", "a1", "c0"]
    assert [names(queue.take(8, 0)) for _ in range(2)] == [["b0"], ["d0"]]


def test_a_large_request_goes_in_several_batches() -> None:
    queue = Queue(100)
    queue.put(job("a", count=5))
    assert [names(queue.take(2, 0)) for _ in range(3)] == [["a0", "a1"], ["a2", "a3"], ["a4"]]


def test_what_nobody_waits_for_is_not_drawn() -> None:
    queue, gone = Queue(100), job("a")
    queue.put(gone)
    queue.put(job("b"))
    gone.abandoned = True
    assert names(queue.take(8, 0)) == ["b0"]


def test_a_full_queue_says_when_to_come_again() -> None:
    queue = Queue(3)
    queue.put(job(count=2))
    with pytest.raises(Busy, match="busy, with 2 pictures waiting") as found:
        queue.put(job(count=2))
    assert found.value.retry_after_s >= 1
    queue.put(job())  # which still fits


def test_a_closed_queue_is_emptied_and_takes_nothing_more() -> None:
    queue = Queue(10)
    queue.put(job())
    queue.close()
    with pytest.raises(FewstepError, match="stopping"):
        queue.put(job())
    assert len(queue.take(8, 0)) == 1
    assert queue.take(8, 0) == []


def test_an_idle_queue_waits_a_little_for_others() -> None:
    queue = Queue(10)
    queue_later = threading.Timer(0.05, lambda: [queue.put(job("a")), queue.put(job("b"))])
    queue_later.start()
    assert names(queue.take(2, 5.0)) == ["a0", "b0"]


# --- the worker ---------------------------------------------------------------------------------------------


def test_pictures_in_a_batch_are_those_of_a_session_to_the_bit() -> None:
    first, second = drawn([[job("a", seed=7), job("b", prompts=("a dog",), seed=3)]])
    with Session(dtype="fp32", device="cpu") as session:
        wish = build(Draw, prompts=("a cat", "a dog"), steps=2)
        expected = [one.pixels for one in session.pictures(wish, session.plan(wish), seeds=(7, 3))]
        alone = next(session.draw("a cat", steps=2, seed=7)).pixels
    assert torch.equal(pixels(first)[0], expected[0])
    assert torch.equal(pixels(second)[0], expected[1])
    torch.testing.assert_close(pixels(first)[0], alone, atol=1e-4, rtol=0)  # of another batch's shape


def test_loras_of_one_request_are_not_in_the_next() -> None:
    wishes = [("high-contrast:0.8", "lcm:1"), (), ("lcm:1",), ("high-contrast:0.8", "lcm:1")]
    told = drawn([[job("a", loras=loras, seed=1) for loras in wishes]], batch_size=1)
    found = [pixels(one)[0] for one in told]
    for loras, picture in zip(wishes, found, strict=True):
        with Session(loras=loras, dtype="fp32", device="cpu") as session:
            assert torch.equal(next(session.draw("a cat", steps=2, seed=1)).pixels, picture)
    assert torch.equal(found[0], found[3])


def test_a_lora_that_fails_changes_nothing() -> None:
    before, failed, after = drawn([[job("a"), job("b", loras=("missing.safetensors",)), job("c")]], batch_size=1)
    assert isinstance(failed[-1], Failed)
    assert "missing.safetensors" in str(failed[-1].error)
    assert torch.equal(pixels(before)[0], pixels(after)[0])


def test_impossible_requests_fail_alone() -> None:
    bad, good = drawn([[job("a", width=30), job("b")]])
    assert [type(message) for message in bad] == [Failed]
    assert len(pixels(good)) == 1


def test_steps_are_told_and_previews_only_to_those_who_ask() -> None:
    asks, plain = job("a", steps=3), job("b", steps=3)
    asks.previews = True
    told = drawn([[asks, plain]])
    shown = [[message.image is not None for message in one if isinstance(message, StepDone)] for one in told]
    assert shown == [[True, True, False], [False, False, False]]


def test_a_batch_that_all_have_left_ends() -> None:
    leaving, calls = job("a", steps=8), []

    def tell(message: object) -> None:
        calls.append(message)
        leaving.abandoned = True

    queue = Queue(10)
    worker = Worker(queue, WHERE, 8, 0)
    leaving.tell = tell
    queue.put(leaving)
    queue.close()
    worker.run()
    assert len(calls) == 1  # the first step


def test_another_model_can_be_asked_for_and_the_first_again(tmp_path) -> None:
    from tests.tiny import tiny_model

    other = str(tiny_model(tmp_path / "other"))
    first, second, third = drawn([[job("a")], [job("b", model=other)], [job("c")]], batch_size=1)
    assert pixels(second)[0].shape[-1] == 16
    assert torch.equal(pixels(first)[0], pixels(third)[0])
