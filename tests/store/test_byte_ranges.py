"""Byte ranges of one file: servers on loopback that change it, break off, answer wrongly or want a token."""

import pytest
from helpers import remote_material
from helpers.hub_server import TOKEN
from helpers.remote_material import NAME, equal

from hlnet.errors import CheckpointError, RunError, UsageError
from hlnet.expert.cut import cut_checkpoint, cut_expert
from hlnet.store import byte_ranges

full, hub, storage, fine = remote_material.full, remote_material.hub, remote_material.storage, remote_material.fine


# ---------------------------------------------------------------------- one file, never a mixture


def test_revision_that_moves_on_meanwhile_makes_no_difference(hub, fine, full):
    def move_on(handler, *answer):
        hub.put("me/net", {"model.safetensors": b"another"})
        handler.reply(*answer)

    hub.faults = [None, None, move_on]
    assert equal(cut_expert(NAME, "dog"), full[1]) and not hub.faults
    with pytest.raises(CheckpointError, match="not an intact safetensors file"):
        cut_expert(NAME, "dog")


def other_tag(handler, status, headers, body):
    handler.reply(status, headers | {"ETag": '"other"'}, body)


def no_tag(handler, status, headers, body):
    handler.reply(status, {name: value for name, value in headers.items() if name != "ETag"}, body)


def other_size(handler, status, headers, body):
    handler.reply(status, headers | {"Content-Range": headers["Content-Range"] + "1"}, body)


def too_short(handler, status, headers, body):
    handler.reply(416, headers | {"Content-Range": "bytes */1"})


def whole(handler, status, headers, body):
    handler.reply(200, {"ETag": headers["ETag"]}, handler.server.commits["me/net", "main"][1]["model.safetensors"])


CHANGES = [(fault, "changed", number) for fault in (other_tag, no_tag, other_size, too_short) for number in (1, 2, 5)]
CHANGES += [(whole, "whole", number) for number in (2, 5)]  # before, while the header is read, whole files will do


@pytest.mark.parametrize(("fault", "words", "number"), CHANGES)
def test_file_that_changes_meanwhile_is_an_error(hub, fine, tmp_path, fault, words, number):
    hub.faults = [None] * number + [fault]
    with pytest.raises(RunError, match=f"'{NAME}'.*{words}") as caught:
        cut_checkpoint(NAME, "dog", tmp_path / "expert.safetensors")
    assert not (tmp_path / "expert.safetensors").exists() and "\n" not in str(caught.value)
    assert len(hub.parts) < 60  # of a hundred: the others are not asked for any more


def test_weak_tags_are_tags(hub, fine, full):
    def weak(handler, status, headers, body):
        handler.reply(status, headers | {"ETag": "W/" + headers["ETag"]}, body)

    hub.faults = [None, None, weak]
    assert equal(cut_expert(NAME, "dog"), full[1])


def other_bytes(handler, status, headers, body):
    handler.reply(status, headers | {"Content-Range": headers["Content-Range"].replace("bytes ", "bytes 1")}, body)


def no_range(handler, status, headers, body):
    handler.reply(status, {name: value for name, value in headers.items() if name != "Content-Range"}, body)


def no_content(handler, status, headers, body):
    handler.reply(204, {name: value for name, value in headers.items() if name != "Content-Range"})


@pytest.mark.parametrize("fault", [other_bytes, no_range, no_content])
@pytest.mark.parametrize("number", [0, 1, 3])
def test_answer_of_other_bytes_is_an_error(hub, fine, fault, number):
    hub.faults = [None] * number + [fault]
    with pytest.raises(RunError, match=f"'{NAME}': asked for bytes .*answered with"):
        cut_expert(NAME, "dog")


# ---------------------------------------------------------------------- connections


def cut_off(handler, status, headers, body):
    handler.reply(status, headers, body[: len(body) // 2], promised=len(body))


def hang_up(handler, status, headers, body):
    handler.close_connection = True


def half(handler, status, headers, body):
    handler.reply(status, headers, body[: len(body) // 2])


def surplus(handler, status, headers, body):
    handler.reply(status, headers, body + b"x")


def busy(handler, status, headers, body):
    handler.reply(503, {})


BROKEN = [cut_off, hang_up, half, surplus, busy]


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize("faults", [[0], [1], [2, 5], [3, 4, 6]])
def test_broken_connection_is_tried_again(hub, fine, full, fault, faults):
    hub.faults = [fault if number in faults else None for number in range(7)]
    assert equal(cut_expert(NAME, "dog"), full[1]) and not hub.faults


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize("number", [0, 3])
def test_connection_that_keeps_breaking_is_an_error(hub, fine, tmp_path, fault, number):
    hub.faults, hub.always = [None] * number, fault
    with pytest.raises(RunError, match="'me/net'") as caught:
        cut_checkpoint(NAME, "dog", tmp_path / "expert.safetensors")
    assert type(caught.value) is RunError and "\n" not in str(caught.value)
    assert not (tmp_path / "expert.safetensors").exists()
    assert len(hub.parts) < 150  # a hundred, each tried five times, would be 500


def test_what_came_twice_is_counted_twice(hub, fine, full, tmp_path):
    once = cut_checkpoint(NAME, "dog", tmp_path / "expert.safetensors")
    hub.faults = [None, half]
    twice = cut_checkpoint(NAME, "dog", tmp_path / "expert.safetensors")
    assert twice > once and hub.sent == once + twice


# ---------------------------------------------------------------------- the token, and the storage host


def test_token_never_leaves_the_hub(hub, storage, fine, full, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.private.add("me/net")
    assert equal(cut_expert(NAME, "dog"), full[1])
    assert hub.tokens == {f"Bearer {TOKEN}"} and storage.tokens == {None}
    assert [method for method, _ in hub.asked] == ["HEAD", "GET"] and len(storage.parts) > 5  # then storage alone
    assert hub.sent == 0 and storage.sent > 0


@pytest.mark.parametrize("lasting", [1, 3])
def test_address_that_runs_out_is_asked_for_anew(hub, storage, fine, full, monkeypatch, lasting):
    monkeypatch.setattr(byte_ranges, "CONNECTIONS", 1)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.private.add("me/net")
    storage.lasting = lasting
    assert equal(cut_expert(NAME, "dog"), full[1])
    assert hub.tokens == {f"Bearer {TOKEN}"} and storage.tokens == {None}
    assert len(hub.asked) - 1 == -(-len(storage.parts) // lasting)  # a GET for each address, and the HEAD
    storage.lasting = 0
    with pytest.raises(RunError, match=r"'me/net'.*403"):
        cut_expert(NAME, "dog")


def test_private_file_without_a_token(hub, storage):
    hub.private.add("me/net")
    with pytest.raises(UsageError, match=r"no model 'me/net' for you.*HF_TOKEN"):
        cut_expert(NAME, "dog")
    assert storage.asked == []


def test_token_that_is_taken_away_meanwhile(hub, fine, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.private.add("me/net")
    hub.always = lambda handler, *answer: handler.reply(403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "no"})
    with pytest.raises(RunError, match="'me/net' is gated"):
        cut_expert(NAME, "dog")
    assert len(hub.parts) == 1  # what is forbidden is not tried again
