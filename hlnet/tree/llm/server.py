"""Asking a server that speaks the OpenAI chat-completions protocol: a company's, or one's own (vLLM, Ollama, …).

Notable here: the key comes from the environment alone and is in no message of ours, even where the server echoes it;
for that reason the package's own errors are neither chained nor shown.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from hlnet.errors import RunError, UsageError, one_line

KEY = "OPENAI_API_KEY"
LONGEST_PAUSE = 60.0  # seconds; a server that wants more has no time for us


def ask_server(
    messages: Sequence[Mapping[str, str]],
    model: str,
    base_url: str | None = None,
    timeout: float = 120.0,
    retries: int = 2,
    on_retry: Callable[[str], None] | None = None,
) -> str:
    """Send the messages to a server, with the package ``openai``, and return its reply.

    Args:
        messages: ``{"role": …, "content": …}``, the last from the user.
        model: its name, as the server knows it.
        base_url: the server's address, such as ``http://localhost:8000/v1``; default: the environment variable
            ``OPENAI_BASE_URL``, else OpenAI's own. The key is read from the environment variable ``OPENAI_API_KEY``;
            a server that needs none is asked without.
        timeout: seconds to wait for a word from the server.
        retries: how often to try again where that may help: the server is busy, at fault, or cannot be reached.
        on_retry: called with one line before each new try.

    Raises:
        UsageError: if ``openai`` is not installed, there is no key, or the address is none.
        RunError: if the server gives no reply.

    Example:
        >>> from functools import partial
        >>> ask = partial(ask_server, model="qwen3:32b", base_url="http://localhost:11434/v1", timeout=600)
        >>> nest_with_llm(classes, ask)  # doctest: +SKIP
    """
    try:
        import openai
    except ImportError:
        raise UsageError("asking a server needs the package openai: pip install openai") from None
    key = os.environ.get(KEY, "").strip()
    base_url = base_url or os.environ.get("OPENAI_BASE_URL") or None
    if not key and base_url is None:
        raise UsageError(f"there is no key: set the environment variable {KEY}, or name a server that needs none")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise UsageError(f"the environment variable {KEY} holds blanks or letters that no key has; set it anew")
    if not timeout > 0 or retries < 0:
        raise UsageError(f"timeout={timeout:g} must be positive, and retries={retries} not negative")
    server = f"the server at {_address(base_url)}" if base_url else "OpenAI's server"
    request: dict[str, Any] = {"model": model, "messages": list(messages)}
    problem = ""
    with openai.OpenAI(api_key=key or "none", base_url=base_url, timeout=timeout, max_retries=0) as client:
        for attempt in range(retries + 1):
            try:
                reply = _content(client.chat.completions.create(**request))
            except Exception as error:  # the package's own, and what its parts let through
                reply = _failure(error, model, timeout, attempt)
            if isinstance(reply, str):
                return reply.replace(key, "[key]") if len(key) >= 8 else reply  # a shorter one may be any word
            words = one_line(reply.words.replace(key, "[key]") if key else reply.words)
            problem = f"{server} {reply.what}{f' ({words})' if words else ''}; {reply.mend}"
            if reply.pause is None or attempt == retries:
                break
            if on_retry:
                on_retry(f"{problem}; trying again in {reply.pause:g} s")
            time.sleep(reply.pause)
    raise RunError(problem)


class _Failure(NamedTuple):
    what: str
    words: str  # the server's own, or the system's; they may hold the key
    mend: str
    pause: float | None = None  # seconds until another try may help


_NO_ADDRESS = "is the address right? Most end in /v1"


def _address(base_url: str) -> str:
    """The address without the password that it may hold."""
    try:
        parts = urlsplit(base_url)
        plain = base_url.isascii() and base_url.isprintable()
        if plain and parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0:
            return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    except ValueError:
        pass
    shown = base_url.rpartition("@")[2]
    raise UsageError(f"{shown!r} is no server's address; expected one such as http://localhost:8000/v1")


def _content(completion: Any) -> str | _Failure:
    try:
        choice = completion.choices[0]
        text = choice.message.content or choice.message.refusal or ""
    except (AttributeError, LookupError, TypeError):
        words = completion if isinstance(completion, str) else _words(getattr(completion, "error", None))
        return _Failure("gave nothing that is a chat completion", words, _NO_ADDRESS)
    if not isinstance(text, str):
        return _Failure("sent something that is no text", "", "ask a model that writes text")
    if not text and choice.finish_reason == "length":
        return _Failure("broke off before the first word of the answer", "", "give it more room for its answer")
    return text


def _failure(error: Exception, model: str, timeout: float, attempt: int) -> _Failure:
    import openai

    pause = 0.5 * 2.0**attempt
    if isinstance(error, openai.APITimeoutError):  # the same again would take as long
        return _Failure(f"said nothing for {timeout:g} s", "", "give it more time")
    if isinstance(error, openai.APIConnectionError):
        return _Failure("cannot be reached", str(error.__cause__ or error), "does it run? " + _NO_ADDRESS, pause)
    if not isinstance(error, openai.APIStatusError):
        return _Failure("gave nothing that is a chat completion", str(error), _NO_ADDRESS)
    status, words = error.status_code, _words(error.body)
    code = error.body.get("code") if isinstance(error.body, dict) else None
    if status in {408, 409, 429} or status >= 500:
        return _Failure(
            "is too busy, or wants to be paid" if status == 429 else f"failed with status {status}",
            words,
            "try again later",
            None if code == "insufficient_quota" else _pause(error.response.headers.get("retry-after"), pause),
        )
    if status in {401, 403}:
        return _Failure("refuses the key", words, f"set the environment variable {KEY} to one that it accepts")
    if status == 404:
        return _Failure(f"has no model {model!r}, or no chat", words, "name one that it has; " + _NO_ADDRESS)
    return _Failure(f"refuses the request with status {status}", words, "is it too long for the model?")


def _words(body: Any) -> str:
    """What the server says of an error; servers differ in the form."""
    if isinstance(body, Mapping):
        body = next((body[key] for key in ("message", "detail", "error") if body.get(key)), "")
    return "" if body is None else str(body)


def _pause(wanted: str | None, default: float) -> float | None:
    """The seconds that a server wants between two tries, where it says; ``None`` if it wants too many."""
    try:
        seconds = float(wanted or default)
    except ValueError:
        return default
    return seconds if 0 <= seconds <= LONGEST_PAUSE else None
