"""Asking a language model's server, a real one on loopback: the protocol, every failure, and a key that nobody sees."""

import json
import logging
import sys
import time
import traceback
from functools import partial

import pytest
from helpers import llm_server
from helpers.llm_replies import CLASSES
from helpers.llm_server import SECRET, Reply, failure, serving

from hlnet.errors import RunError, TreeError, UsageError
from hlnet.tree.llm.nest import nest_with_llm
from hlnet.tree.llm.server import ask_server

key = llm_server.key

MESSAGES = [{"role": "user", "content": "Nest these."}]


def fails(*replies, words, tries=None, timeout=10.0, retries=0):
    """That asking fails with these words, on one line, without the key, after so many tries."""
    with serving(*replies) as (url, requests):
        with pytest.raises(RunError, match=words) as caught:
            ask_server(MESSAGES, "tiny", url, timeout=timeout, retries=retries)
        assert len(requests) == (len(replies) if tries is None else tries)
    message = str(caught.value)
    assert url in message and "\n" not in message and len(message) < 450
    assert SECRET not in "".join(traceback.format_exception(caught.value)) and caught.value.__context__ is None
    return message


def test_asks_in_the_protocol(key, caplog):
    caplog.set_level(logging.DEBUG)
    with serving(Reply("Hello.")) as (url, requests):
        assert ask_server(MESSAGES, "tiny", url) == "Hello."
    [(path, headers, body)] = requests
    assert path == "/v1/chat/completions" and body == {"model": "tiny", "messages": MESSAGES}
    assert headers["authorization"] == f"Bearer {key}"
    assert key not in caplog.text


def test_address_from_the_environment(key, monkeypatch):
    with serving(Reply("Hello.")) as (url, requests):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        assert ask_server(MESSAGES, "tiny") == "Hello." and len(requests) == 1


def test_server_without_keys(key, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with serving(Reply("Hello.")) as (url, requests):
        assert ask_server(MESSAGES, "tiny", url) == "Hello."
    assert SECRET not in str(requests)
    with pytest.raises(UsageError, match="OPENAI_API_KEY"):
        ask_server(MESSAGES, "tiny")


def test_nests_over_a_server(key):
    replies = [
        Reply('```json\n{"cat": ["tabby", "siamese"], "dog": ["bea', finish="length"),
        Reply('{"beagle": "dog"}'),
    ]
    with serving(*replies) as (url, requests):
        result = nest_with_llm(["tabby", "siamese", "beagle"], partial(ask_server, model="tiny", base_url=url))
    assert result.hierarchy.to_tree().to_nested() == {"cat": {"tabby": 0, "siamese": 1}, "dog": {"beagle": 2}}
    assert result.check.truncated and result.check.missing == ("beagle",)
    assert [body["messages"] for *_, body in requests] == [[result.transcript[0]], [result.transcript[2]]]


def test_a_refusing_model(key):
    with serving(*[Reply("I'm sorry, I can't help with that.")] * 2) as (url, requests):
        with pytest.raises(TreeError, match="I'm sorry, I can't help"):
            nest_with_llm(CLASSES, partial(ask_server, model="tiny", base_url=url), rounds=1)
        assert len(requests) == 2
    refusal = {"choices": [{"message": {"content": None, "refusal": "I won't."}, "finish_reason": "stop"}]}
    with serving(Reply(body=json.dumps(refusal))) as (url, _):
        assert ask_server(MESSAGES, "tiny", url) == "I won't."


def test_key_in_the_reply_is_scrubbed(key):
    with serving(Reply(f"Your key is {key}.")) as (url, _):
        assert ask_server(MESSAGES, "tiny", url) == "Your key is [key]."


def test_slow_server(key):
    start = time.monotonic()
    message = fails(Reply("late", wait=1.5), words="said nothing for 0.5 s; give it more time", timeout=0.5, retries=2)
    assert time.monotonic() - start < 5 and "give it more time" in message


@pytest.mark.parametrize(
    "reply, words",
    [
        (
            failure(401, f"Incorrect API key provided: {SECRET}."),
            r"refuses the key \(.*\[key\]\.\); set .*OPENAI_API_KEY",
        ),
        (failure(403, "x" * 190 + SECRET), "refuses the key"),
        (failure(404, "The model `tiny` does not exist"), r"no model 'tiny'.*does not exist.*/v1"),
        (failure(400, "prompt is\ntoo long"), r"status 400 \(prompt is too long\)"),
        (failure(429, "quota", code="insufficient_quota"), "quota"),
        (failure(429, "slow down", headers={"Retry-After": "3600"}), "slow down"),
        (Reply(status=422, body='{"detail": [{"msg": "field required"}]}'), "422.*field required"),
        (Reply(status=418, body="I'm a teapot"), "418.*teapot"),
        (Reply(body="{not json"), "nothing that is a chat completion"),
        (Reply(body=""), "nothing that is a chat completion"),
        (Reply(body="[1]"), "nothing that is a chat completion"),
        (Reply(body="null"), "nothing that is a chat completion"),
        (Reply(body='{"choices": []}'), "nothing that is a chat completion"),
        (Reply(body='{"choices": [{"message": "hi"}]}'), "nothing that is a chat completion"),
        (Reply(body='{"error": {"message": "no credits"}}'), r"nothing that is a chat completion \(no credits\)"),
        (Reply(body=f"<html>{SECRET}</html>", headers={"Content-Type": "text/html"}), r"\(<html>\[key\]</html>\)"),
        (Reply([{"type": "image"}]), "no text"),
        (Reply("", finish="length"), "broke off before the first word"),
    ],
)
def test_failures_that_are_not_tried_again(key, reply, words):
    message = fails(reply, words=words, retries=2)
    assert "sk-proj" not in message  # nor a part of it


def test_tries_again_when_the_server_is_busy(key):
    said = []
    busy = failure(429, f"too fast, {SECRET}", headers={"Retry-After": "0"})
    with serving(busy, failure(503, "warming up", headers={"Retry-After": "0.01"}), Reply("Hello.")) as (url, requests):
        assert ask_server(MESSAGES, "tiny", url, on_retry=said.append) == "Hello."
        assert len(requests) == 3
    assert [line.partition("; trying again in ")[2] for line in said] == ["0 s", "0.01 s"]
    assert "too fast, [key]" in said[0] and "warming up" in said[1] and SECRET not in str(said)


def test_gives_up_after_the_tries(key):
    broken = [failure(500, "internal", headers={"Retry-After": "0"})] * 3
    fails(*broken, words=r"status 500 \(internal\); try again later", retries=2)
    fails(failure(500, "internal"), words="500")


def test_pauses_longer_each_time(key, monkeypatch):
    pauses = []
    monkeypatch.setattr("hlnet.tree.llm.server.time.sleep", pauses.append)
    server = failure(500, "internal"), failure(500, "internal", {"Retry-After": "soon"}), failure(500, "internal")
    fails(*server, words="500", retries=2)
    assert pauses == [0.5, 1.0]


def test_connection_refused(key):
    with serving() as (url, _):
        pass
    said = []
    with pytest.raises(RunError, match=r"cannot be reached \(.*refused\)") as caught:
        ask_server(MESSAGES, "tiny", url, retries=1, on_retry=said.append)
    assert url in str(caught.value) and len(said) == 1 and caught.value.__context__ is None


def test_connection_lost_in_the_middle(key):
    fails(Reply("Hello.", cut=50), words="cannot be reached|nothing that is")


def test_password_in_the_address_stays_secret(key):
    with serving() as (url, _):
        pass
    with pytest.raises(RunError) as caught:
        ask_server(MESSAGES, "tiny", url.replace("//", "//me:hunter2@") + "?token=abc", retries=0)
    assert "hunter2" not in str(caught.value) and "abc" not in str(caught.value) and "127.0.0.1" in str(caught.value)


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://x/v1", "http://", "http://[::1", "http://h:99999", "http://a\nb"]
)
def test_wrong_address(key, url):
    with pytest.raises(UsageError, match="address"):
        ask_server(MESSAGES, "tiny", url)


@pytest.mark.parametrize("wrong", ["sk-é", "sk-a b", "sk-a\nb"])
def test_wrong_key(key, monkeypatch, wrong):
    monkeypatch.setenv("OPENAI_API_KEY", wrong)
    with pytest.raises(UsageError, match="OPENAI_API_KEY") as caught:
        ask_server(MESSAGES, "tiny", "http://127.0.0.1:9/v1")
    assert wrong not in str(caught.value)


@pytest.mark.parametrize("options", [{"timeout": 0}, {"timeout": float("nan")}, {"retries": -1}])
def test_wrong_options(key, options):
    with pytest.raises(UsageError):
        ask_server(MESSAGES, "tiny", "http://127.0.0.1:9/v1", **options)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UsageError, match="pip install openai"):
        ask_server(MESSAGES, "tiny", "http://127.0.0.1:9/v1")
