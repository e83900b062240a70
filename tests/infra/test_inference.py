"""Oracles: the server's own count of what it was sent and answered, over real sockets; the protocol's published JSON."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from email.utils import formatdate

import pytest

from infra.language_models import client as inference
from infra.language_models import rate_limit as rate
from infra.language_models.client import Endpoint, EndpointError, retry_after_seconds
from infra.language_models.protocol import AnswerMemory, Request, chat_request, completion_request, read_choice
from infra.language_models.spending import Spending
from infra.settings import EndpointSettings, settings_of
from infra.storage.store import Store, StoreError
from tests.openai_server import FAULTS, OpenAIServer

REQUESTS = [chat_request("m", [{"role": "user", "content": str(i)}], temperature=0.5) for i in range(80)]


def echo(body):
    return "said " + body["messages"][-1]["content"]


def settings(server, **changes):
    quick = {"timeout_seconds": 2.0, "first_wait_seconds": 0.01, "concurrency": 8, "prompt_price": 1e6}
    return EndpointSettings(url=server.url, **(quick | {"completion_price": 2e6} | changes))


@pytest.fixture
def memory(tmp_path):
    return AnswerMemory(Store(str(tmp_path / "store")))


def test_every_fault_is_survived_and_nothing_is_paid_twice(memory):
    with OpenAIServer(echo, faults=True) as server:
        with Endpoint("m", settings(server), memory) as endpoint:
            answers = list(endpoint.ask(iter(REQUESTS)))
        assert [answer.text for answer in answers] == [f"said {i}" for i in range(80)]
        assert set(server.met) == set(FAULTS), "a kind of fault did not occur"
        assert len(server.paid) == 80 and set(server.paid.values()) == {1}
        failed = sum(count for fault, count in server.met.items() if fault != "none")
        assert failed == server.sent.total() - 80
        assert endpoint.usage.retries >= failed, "a connection that the server closed may also be found closed"
        assert (endpoint.usage.prompt_tokens, endpoint.usage.completion_tokens) == (800, 160)
        assert endpoint.usage.cost == endpoint.usage.paid_now == 800 + 2 * 160
        before = server.sent.total()
        with Endpoint("m", settings(server), memory) as again:
            assert [answer.body for answer in again.ask(REQUESTS)] == [answer.body for answer in answers]
        assert server.sent.total() == before
        facts = again.facts()
        assert (facts["requests"], facts["remembered"], facts["cost"], facts["paid_now"]) == (80, 80, 1120, 0)


def test_at_most_the_configured_number_is_under_way():
    with OpenAIServer(echo, delay_seconds=0.01) as server:
        with Endpoint("m", settings(server, concurrency=3)) as endpoint:
            list(endpoint.ask(REQUESTS[:30]))
        assert server.most_at_once == 3


def test_equal_requests_under_way_are_sent_once_with_a_memory_only(memory):
    same = [REQUESTS[0]] * 10
    with OpenAIServer(echo, delay_seconds=0.1) as server:
        with Endpoint("m", settings(server), memory) as endpoint:
            assert [answer.remembered for answer in endpoint.ask(same)].count(False) == 1
        assert server.sent.total() == 1
        with Endpoint("m", settings(server)) as endpoint:
            list(endpoint.ask(same))
        assert server.sent.total() == 11


def test_a_refused_request_is_an_answer_and_is_kept(memory):
    with OpenAIServer(lambda body: 400 if body["messages"][0]["content"] == "1" else echo(body)) as server:
        for _ in range(2):
            with Endpoint("m", settings(server), memory) as endpoint:
                answers = list(endpoint.ask(REQUESTS[:3]))
            assert [answer.refused[:9] for answer in answers] == ["", "HTTP 400:", ""]
            assert answers[1].text == "" and answers[1].choices == []
            assert endpoint.usage.refused == 1
        assert server.sent.total() == 3


def test_a_wrong_key_ends_at_once_and_is_not_told(monkeypatch):
    monkeypatch.setenv("MY_KEY", "sesame")
    with OpenAIServer(lambda body: 401) as server:
        with (
            pytest.raises(EndpointError, match=r"HTTP 401.*\(MY_KEY\)") as caught,
            Endpoint("m", settings(server, key_env="MY_KEY")) as endpoint,
        ):
            list(endpoint.ask(REQUESTS[:1]))
        assert server.headers[0]["Authorization"] == "Bearer sesame"
        assert "sesame" not in str(caught.value)
    with pytest.raises(ValueError, match=r"\$NO_SUCH_KEY, which is not set"):
        Endpoint("m", settings(server, key_env="NO_SUCH_KEY"))


def test_patience_ends_with_what_happened_and_keeps_the_others(memory):
    with OpenAIServer(lambda body: 503 if body["messages"][0]["content"] == "2" else echo(body)) as server:
        with (
            pytest.raises(EndpointError, match=r"did not answer for 2 s .*last failure: HTTP 503"),
            Endpoint("m", settings(server, patience_seconds=2.0), memory) as endpoint,
        ):
            list(endpoint.ask(REQUESTS[:6]))
        assert server.sent.total() > 6, "the failing one was tried again"
    assert [memory.recall(request) is not None for request in REQUESTS[:6]] == [True, True, False, True, True, True]


def test_a_cost_cap_holds_over_clients_and_attempts(tmp_path, memory):
    """An answer costs 10 + 2 x 2 = 14, so 50 are reached by the fourth and 100 by the eighth."""
    store = Store(str(tmp_path / "store"))
    with OpenAIServer(echo) as server:
        for most, paid, kept in ((50, 4, 0), (50, 4, 4), (100, 8, 4)):
            read = []
            client = Endpoint("m", settings(server, concurrency=1), memory, spending=Spending(store, "spent", most))
            with client, pytest.raises(EndpointError, match=rf"max_cost={most}; all answers so far are kept: raise"):
                read += client.ask(REQUESTS)
            # What the store remembers is free, whatever has been paid.
            assert client.usage.remembered >= kept
            assert server.paid.total() == paid
        with Endpoint("m", settings(server), memory, spending=Spending(store, "spent", 5000)) as client:
            assert len(list(client.ask(REQUESTS))) == 80
        assert set(server.paid.values()) == {1}
    assert Spending(store, "spent", 1).others() == 80 * 14
    with pytest.raises(ValueError, match="max_cost=5 caps what prompt_price and completion_price add up to"):
        EndpointSettings(url="http://nowhere", max_cost=5)


@pytest.mark.parametrize("usage", [{}, {"usage": None}, {"usage": {"prompt_tokens": 10, "total_tokens": 12}}])
def test_what_a_server_does_not_count_cannot_be_capped(tmp_path, memory, usage):
    """Its answers cost nothing that can be seen, so a cap would hold nothing back."""
    store = Store(str(tmp_path / "store"))
    with OpenAIServer(lambda body: {"choices": [{"message": {"content": "yes"}}], **usage}) as server:
        client = Endpoint("m", settings(server, concurrency=1), memory, spending=Spending(store, "spent", 50))
        with client, pytest.raises(EndpointError, match=r"cannot be capped.*no completion_tokens in `usage`"):
            list(client.ask(REQUESTS))
        assert server.paid.total() == 1
        with Endpoint("m", settings(server), memory) as client:
            assert [answer.text for answer in client.ask(REQUESTS[:3])] == ["yes"] * 3
        assert server.paid.total() == 3, "the first one was kept"
    with OpenAIServer(lambda body: 400) as server:
        client = Endpoint("m", settings(server), memory, spending=Spending(store, "spent", 50))
        with client:
            assert next(client.ask(REQUESTS[5:6])).refused, "a refusal costs nothing and needs no usage"


def test_answers_that_are_paid_and_cannot_be_used_count_too(tmp_path, memory):
    """Each costs 10 + 2 x 2 = 14: the fourth reaches 50."""
    store = Store(str(tmp_path / "store"))
    unusable = {"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 2}}
    with OpenAIServer(lambda body: unusable) as server:
        slow = settings(server, concurrency=1, patience_seconds=30)
        client = Endpoint("m", slow, memory, spending=Spending(store, "spent", 50))
        with client, pytest.raises(EndpointError, match="has paid 56 for m, which reaches max_cost=50"):
            list(client.ask(REQUESTS[:1]))
        assert server.paid.total() == 4
    assert Spending(store, "spent", 1).others() == 56


def test_a_store_that_refuses_the_sum_is_told_and_leaves_nothing_open(tmp_path, memory):
    """What a client paid is lost for the cap, so it must not go unsaid; its thread and connections end all the same."""
    store = Store(str(tmp_path / "store"))
    with OpenAIServer(echo) as server:
        client = Endpoint("m", settings(server), memory, spending=Spending(store, "spent", 5000))
        client.__enter__()
        assert len(list(client.ask(REQUESTS[:3]))) == 3
        shutil.rmtree(tmp_path / "store" / "spent")
        # A file where the folder was: nothing can be written below it.
        (tmp_path / "store" / "spent").write_bytes(b"")
        with pytest.raises(StoreError):
            client.__exit__(None, None, None)
    assert client._http.closed and client._loop.is_closed() and not client._thread.is_alive()


def test_what_closed_clients_paid_is_told_by_one_listing(tmp_path, monkeypatch):
    """However many shards there were: the files that are read are those of clients that are open, or were killed."""
    store, read = Store(str(tmp_path / "store")), []
    read_json = Store.read_json
    monkeypatch.setattr(Store, "read_json", lambda self, path: read.append(path) or read_json(self, path))
    asking = Spending(store, "spent", 1000)
    for paid in (0.125, 1e-7, 3.0):
        client = Spending(store, "spent", 1000)
        client.tell(0.0)
        client.close(paid)
    idle, running = Spending(store, "spent", 1000), Spending(store, "spent", 1000)
    idle.tell(0.0)
    idle.close(0.0)
    running.tell(7.0)
    asking.tell(100.0)
    assert asking.others() == pytest.approx(10.1250001, abs=1e-12)
    assert len(read) == 1
    # It closes between the listing and the reading.
    monkeypatch.setattr(Store, "read_json", lambda self, path: running.close(8.0) or read_json(self, path))
    assert asking.others() == pytest.approx(11.1250001, abs=1e-12)
    # A client that is killed between leaving its sum and removing its file counts once.
    running.tell(8.0)
    monkeypatch.setattr(Store, "read_json", read_json)
    assert asking.others() == pytest.approx(11.1250001, abs=1e-12)
    assert running.others() == pytest.approx(103.1250001, abs=1e-12)


def test_nobody_there_is_an_error_with_a_way_out():
    with OpenAIServer(echo) as server:
        gone = settings(server, patience_seconds=0.05)
    said: list[str] = []
    with pytest.raises(EndpointError, match="ClientConnectorError"), Endpoint("m", gone, None, said.append) as endpoint:
        list(endpoint.ask(REQUESTS[:1]))
    assert len(said) == 1
    assert said[0].startswith(f"no answer from {server.url} (ClientConnectorError: Cannot connect")
    assert said[0].endswith("asking again for up to 0.000833 min")


def test_the_first_failed_connection_is_told_once_and_in_the_readers_thread():
    with OpenAIServer(echo) as server:
        gone = settings(server, patience_seconds=1.5)
    said = []
    warn = lambda text: said.append((threading.current_thread(), text))  # noqa: E731
    with pytest.raises(EndpointError), Endpoint("m", gone, None, warn) as endpoint:
        list(endpoint.ask(REQUESTS[:3]))
    assert endpoint.usage.retries > 3
    assert [thread for thread, _ in said] == [threading.current_thread()]


def test_leaving_early_keeps_what_was_sent(memory):
    with OpenAIServer(echo, delay_seconds=0.05) as server:
        with Endpoint("m", settings(server), memory) as endpoint:
            next(endpoint.ask(REQUESTS))
        assert 1 <= len(server.paid) < 80
        assert sum(memory.recall(request) is not None for request in REQUESTS) == server.paid.total()


KILLED = """
import sys
from infra.language_models.protocol import AnswerMemory, chat_request
from infra.language_models.client import Endpoint
from infra.settings import EndpointSettings
from infra.storage.store import Store, StoreError
requests = [chat_request("m", [{"role": "user", "content": str(i)}], temperature=0.5) for i in range(80)]
settings = EndpointSettings(url=sys.argv[1], concurrency=4, first_wait_seconds=0.01)
with Endpoint("m", settings, AnswerMemory(Store(sys.argv[2]))) as endpoint:
    print(len([answer.text for answer in endpoint.ask(requests)]))
"""


def test_a_killed_client_goes_on_where_it_was(tmp_path, memory):
    command = [sys.executable, "-c", KILLED]
    with OpenAIServer(echo, delay_seconds=0.02) as server:
        command += [server.url, memory.store.url]
        first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while server.paid.total() < 20:
            assert first.poll() is None, "it ended before it could be killed"
            time.sleep(0.005)
        os.kill(first.pid, signal.SIGKILL)
        assert first.wait() == -signal.SIGKILL
        kept = {i for i, request in enumerate(REQUESTS) if memory.recall(request)}
        assert 16 <= len(kept) < 80
        before = len(server.bodies)
        assert subprocess.run(command, capture_output=True, check=True, text=True).stdout == "80\n"
        asked_later = {int(body["messages"][0]["content"]) for body in server.bodies[before:]}
        assert asked_later == set(range(80)) - kept
        assert len(server.bodies) <= 80 + 4, "a kill costs at most what was under way"


def test_another_process_may_be_first(memory):
    assert memory.keep(REQUESTS[0], {"choices": [1]}) == {"choices": [1]}
    assert memory.keep(REQUESTS[0], {"choices": [2]}) == {"choices": [1]}


def test_requests_differ_by_everything_that_changes_the_answer():
    base = chat_request("m", [{"role": "user", "content": "x"}], temperature=1.0)
    others = [
        chat_request("n", [{"role": "user", "content": "x"}], temperature=1.0),
        chat_request("m", [{"role": "user", "content": "y"}], temperature=1.0),
        chat_request("m", [{"role": "user", "content": "x"}], temperature=1.0, seed=1),
        completion_request("m", "x", temperature=1.0),
        completion_request("m", [1, 2]),
        completion_request("m", "1, 2"),
    ]
    assert len({request.key for request in [base, *others]}) == 7
    assert base.key == Request("chat/completions", dict(reversed(base.body.items()))).key


def test_the_served_name_is_what_the_server_is_told_and_no_part_of_the_request(memory):
    with (
        OpenAIServer(lambda body: body["model"]) as server,
        Endpoint("m", settings(server, served_name="local"), memory) as endpoint,
    ):
        assert [answer.text for answer in endpoint.ask(REQUESTS[:1])] == ["local"]
    assert memory.recall(REQUESTS[0]) is not None


def test_token_ids_and_logprobs_of_a_completion():
    reply = {
        "choices": [
            {
                "text": "ab",
                "finish_reason": "length",
                "logprobs": {"tokens": ["token_id:5", "token_id:7"], "token_logprobs": [None, -0.5]},
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    }
    with OpenAIServer(lambda body: reply) as server, Endpoint("m", settings(server)) as endpoint:
        request = completion_request("m", [11, 12, 13], logprobs=0, max_tokens=2, n=1)
        choice = endpoint.submit(request).result().choices[0]
        assert server.bodies == [{"model": "m", "prompt": [11, 12, 13], "logprobs": 0, "max_tokens": 2, "n": 1}]
    assert (choice.text, choice.finish, choice.ids, choice.logprobs) == ("ab", "length", (5, 7), (None, -0.5))
    assert read_choice({"text": "a", "token_ids": [9]}).ids == (9,)
    chat = {"message": {"content": None}, "logprobs": {"content": [{"token": "a", "logprob": -1.0}]}}
    assert (read_choice(chat).text, read_choice(chat).logprobs, read_choice(chat).ids) == ("", (-1.0,), None)


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now

    async def sleep(self, seconds):
        self.now += seconds


def test_a_bucket_gives_its_rate_and_pays_back_what_it_overdrew(monkeypatch):
    import asyncio

    clock = Clock()
    monkeypatch.setattr(rate.time, "monotonic", clock.monotonic)
    monkeypatch.setattr(rate.asyncio, "sleep", clock.sleep)

    async def take(bucket, count):
        times = []
        for _ in range(count):
            await bucket.take(1)
            times.append(clock.now)
        return times

    times = asyncio.run(take(rate.Bucket(per_minute=30), 11))
    assert times[-1] - times[0] >= 2.0 * 9, "one every two seconds"
    bucket = rate.Bucket(per_minute=6_000)
    bucket.charge(1_100)
    before = clock.now
    asyncio.run(take(bucket, 1))
    assert clock.now - before == pytest.approx(10.0, abs=0.1), "1,000 too many at 100 a second"
    assert asyncio.run(take(rate.Bucket(per_minute=0), 5)) == [clock.now] * 5


def test_retry_after_is_seconds_or_a_date():
    asked = retry_after_seconds
    assert asked("") == asked("soon") == asked("-3") == asked(formatdate(0, usegmt=True)) == 0.0
    assert asked("7.5") == 7.5
    assert 5 < asked(formatdate(time.time() + 60, usegmt=True)) <= 60
    assert asked("99999") == inference.LONGEST_RETRY_AFTER_SECONDS


def test_an_unknown_model_names_what_to_write():
    one, two = EndpointSettings(url="http://a/v1"), EndpointSettings(url="http://b/v1")
    assert settings_of("m", {"m": one, "default": two}) is one
    assert settings_of("n", {"m": one, "default": two}) is two
    with pytest.raises(ValueError, match=r"no endpoint is known for model 'n'.*endpoints: \{n: \{url"):
        settings_of("n", {"m": one})
    with pytest.raises(ValueError, match="url"):
        EndpointSettings(url="localhost:8000")


def test_answers_are_readable_objects_with_their_request(memory):
    memory.keep(REQUESTS[0], {"choices": []})
    entry = json.loads(memory.store.read(f"_answers/{REQUESTS[0].key[:2]}/{REQUESTS[0].key}.json"))
    assert entry == {"route": "chat/completions", "request": REQUESTS[0].body, "answer": {"choices": []}}
