"""What goes wrong outside: clients that leave, hold a connection or read slowly; a server that is killed."""

import json
import random
import re
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import httpx

from tests.server.conftest import png, process, serving, until
from tests.tiny import tiny_model

SMALL = {"prompts": "a cat", "steps": 1, "width": 64, "height": 64}
EVENTS = "Accept: text/event-stream"
LONG = {"solver": "ddim", "steps": 100, "width": 128, "height": 128}


def asked(address: str, **body: object) -> int:
    """The status of a request for a small picture."""
    data = json.dumps({**SMALL, **body}).encode()
    with urlopen(Request(f"{address}/v1/sample", data, {"content-type": "application/json"}), timeout=60) as answer:
        return int(answer.status)


def connection(address: str, text: bytes = b"") -> socket.socket:
    """An open connection on which this was sent."""
    place = urlsplit(address)
    found = socket.create_connection((place.hostname or "", place.port or 0))
    found.sendall(text)
    return found


def count(address: str, name: str) -> float:
    """A number that the server counts."""
    with urlopen(f"{address}/metrics") as answer:
        found = re.search(rf"\n{name} (\S+)", answer.read().decode())
    assert found
    return float(found[1])


def request(**body: object) -> bytes:
    """A whole request, as it goes over the wire."""
    data = json.dumps({**SMALL, **body}).encode()
    head = (
        f"POST /v1/sample HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
    )
    return f"{head}\r\nAccept: text/event-stream\r\n\r\n".encode() + data


def test_pictures_of_a_client_that_has_left_are_not_drawn() -> None:
    with serving(batch_size=1) as address:
        asked(address)
        before = count(address, "fewstep_pictures_total")
        leaving = connection(address, request(count=16, steps=8, width=128, height=128))
        time.sleep(0.3)
        leaving.close()
        until(lambda: count(address, "fewstep_waiting_pictures") == 0)
        assert asked(address) == 200
        assert count(address, "fewstep_pictures_total") - before < 16


def test_idle_connections_broken_requests_and_slow_readers_hold_nobody_up(address) -> None:
    held = [connection(address) for _ in range(1000)]
    held += [connection(address, request()[:-3]) for _ in range(5)]  # never sent to its end
    held.append(connection(address, request(count=4, previews=True, steps=4)))  # and never read
    broken = connection(address, b"\x16\x03\x01 no HTTP at all\r\n\r\n")
    assert asked(address) == 200
    for one in (*held, broken):
        one.close()
    assert asked(address) == 200


def form() -> bytes:
    """A whole request to edit a picture, as OpenAI's client sends it."""
    fields = {"prompt": b"a cat", "size": b"64x64", "num_inference_steps": b"1"}
    parts = [(f'name="{name}"', value) for name, value in fields.items()]
    parts += [(f'name="{name}"; filename="{name}.png"', png((64, 64), mode="RGBA")) for name in ("image", "mask")]
    body = b"".join(
        b"--edge\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + value + b"\r\n"
        for head, value in parts
    )
    return body + b"--edge--\r\n"


def damaged(body: bytes, number: int) -> bytes:
    """The body with pieces cut out, doubled, or filled with other bytes; a number gives the same each time."""
    chance = random.Random(number)
    for _ in range(chance.randint(1, 4)):
        first, last = sorted(chance.choices(range(len(body) + 1), k=2))
        last = min(last, first + chance.choice((1, 8, 64, len(body))))
        piece = chance.choice((b"", body[first:last] * 2, chance.randbytes(last - first), b"\r\n--edge\r\n"))
        body = body[:first] + piece + body[last:]
    return body


def test_damaged_forms_are_answered_with_4xx_and_the_next_is_drawn(address) -> None:
    with httpx.Client(
        base_url=address, timeout=60, headers={"content-type": "multipart/form-data; boundary=edge"}
    ) as http:
        whole = form()
        assert http.post("/v1/images/edits", content=whole).status_code == 200
        statuses = {http.post("/v1/images/edits", content=damaged(whole, n)).status_code for n in range(100)}
        assert 400 in statuses
        assert statuses <= {200, 400, 413, 422}, statuses
        assert http.post("/v1/images/edits", content=whole).status_code == 200


def test_models_that_are_switched_under_load_draw_what_they_draw_alone(tmp_path) -> None:
    other = str(tiny_model(tmp_path / "other"))
    wishes = [{"model": model, "seed": seed} for seed in range(4) for model in ("emoji", "other")]
    with serving(models=(other,), batch_size=1) as address, httpx.Client(base_url=address, timeout=60) as http:

        def drawn(wish: dict[str, object]) -> bytes:
            answer = http.post("/v1/sample", json={**SMALL, **wish}, headers={"accept": "image/png"})
            assert answer.status_code == 200, answer.text
            return answer.content

        alone = [drawn(wish) for wish in wishes]
        with ThreadPoolExecutor(len(wishes)) as pool:
            assert list(pool.map(drawn, wishes)) == alone
    assert len(set(alone)) == len(alone)


def test_a_full_queue_answers_429_and_goes_on() -> None:
    with serving(queue=2, batch_size=1) as address, httpx.Client(base_url=address, timeout=60) as http:
        waiting = [connection(address, request(**LONG, count=2)) for _ in range(2)]
        until(lambda: count(address, "fewstep_waiting_pictures") > 0)
        busy = http.post("/v1/sample", json={**SMALL, "count": 2})
        assert busy.status_code == 429
        assert int(busy.headers["retry-after"]) >= 1
        assert busy.json()["error"]["type"] == "rate_limit_error"
        for one in waiting:
            one.close()
        until(lambda: count(address, "fewstep_waiting_pictures") == 0)
        assert http.post("/v1/sample", json=SMALL).status_code == 200


def test_a_request_past_its_deadline_is_given_up() -> None:
    with serving(deadline_s=0.05) as address, httpx.Client(base_url=address, timeout=60) as http:
        late = http.post("/v1/sample", json={**SMALL, **LONG})
        assert (late.status_code, "too long" in late.json()["error"]["message"]) == (503, True)


def test_a_killed_server_leaves_nothing_that_stops_the_next(tmp_path: Path) -> None:
    for _ in range(2):
        with process(tmp_path / "log") as (server, address):
            held = connection(address, request(**LONG))
            assert asked(address) == 200
            server.send_signal(signal.SIGKILL)
            server.wait(30)
            held.close()
