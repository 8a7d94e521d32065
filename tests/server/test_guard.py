"""What a server refuses before anything reads a request: other hosts, other pages, no key; and how it is started."""

import signal
import urllib.request

import pytest
from fastapi.testclient import TestClient

from fewstep.errors import FewstepError, UsageError
from fewstep.server import check_open, serve
from fewstep.server.app import new_app
from fewstep.server.offer import Offer, public_name
from fewstep.server.running import bound
from tests.server.conftest import config, process


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "a@evil.example", ""])
def test_only_the_name_localhost_is_answered(http, host) -> None:
    answer = http.get("/v1/offer", headers={"host": host})
    assert answer.status_code == 421
    assert http.get("/v1/offer", headers={"host": "localhost:8000"}).status_code == 200


def test_other_pages_are_not_answered_and_no_page_may_read_answers(http) -> None:
    answer = http.post("/v1/sample", json={"prompts": "a"}, headers={"origin": "https://evil.example"})
    assert answer.status_code == 403
    own = http.get("/v1/offer", headers={"origin": "http://127.0.0.1:8000"})
    assert own.status_code == 200
    assert not [name for name in own.headers if name.startswith("access-control")]
    assert "default-src 'self'" in own.headers["content-security-policy"]


def test_a_key_is_asked_for_and_is_never_told(caplog) -> None:
    app = new_app(config(api_key="a secret key"), load=False)
    with TestClient(app, base_url="http://127.0.0.1") as http:
        assert http.get("/v1/offer").status_code == 401
        wrong = http.get("/v1/offer", headers={"authorization": "Bearer wrong"})
        assert (wrong.status_code, "secret" in wrong.text) == (401, False)
        assert http.get("/v1/offer", headers={"authorization": "Bearer a secret key"}).status_code == 200
        assert http.get("/v1/offer", headers={"x-api-key": "a secret key"}).status_code == 200
        assert [http.get(path).status_code for path in ("/", "/healthz", "/page/app.js")] == [200, 200, 200]
        assert [http.get(path).status_code for path in ("/metrics", "/docs", "/sdapi/v1/loras")] == [401, 401, 401]
    assert "secret" not in caplog.text


def test_other_machines_need_a_key_or_a_word() -> None:
    with pytest.raises(UsageError, match="can be reached from other machines"):
        serve(config(host="0.0.0.0"))
    check_open(config(host="0.0.0.0", without_key=True))
    check_open(config(host="0.0.0.0", api_key="x"))


def test_files_outside_the_page_are_not_served(http) -> None:
    for path in ("/page/../app.py", "/page/%2e%2e/app.py", "/page/..%2fapp.py", "/page//etc/passwd"):
        assert http.get(path).status_code == 404


def test_names_are_the_last_part_of_what_was_typed() -> None:
    assert public_name("owner/name@main") == "name"
    assert public_name("/models/my style.safetensors") == "my style"
    found = Offer.of(config(loras=("/a/ink.safetensors:0.5",), offer=("/b/wash.safetensors",)))
    assert list(found.loras) == ["ink", "wash", "lcm", "high-contrast", "noto-mono"]
    assert found.chosen(["ink:0.25", "wash"]) == ("/a/ink.safetensors:0.25", "/b/wash.safetensors")
    with pytest.raises(UsageError, match="would both be called ink"):
        Offer.of(config(offer=("/a/ink.safetensors", "/b/ink.safetensors")))


def test_a_port_that_is_taken_is_one_line() -> None:
    with bound("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(FewstepError, match="cannot listen at 127"):
            bound("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(FewstepError, match="cannot listen at no-such-host"):
        bound("no-such-host.invalid", 8000)


def test_the_command_serves_and_sigterm_ends_it(tmp_path) -> None:
    with process(tmp_path / "errors") as (server, address):
        with urllib.request.urlopen(f"{address}/healthz") as answer:
            assert b'"ok"' in answer.read()
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
