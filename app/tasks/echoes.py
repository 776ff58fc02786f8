"""Echoed prompts: what some families repeat of a request in its result. Pure; prompts are compared by their hashes."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def echo_of(answer: Mapping[str, Any]) -> str:
    """Return a hash of the prompt that a result echoes; "" where its family echoes none, or not one only.

    >>> echo_of({"output": {"results": [{"orig_prompt": "a boat"}, {"orig_prompt": "a boat"}]}}) == hash_of("a boat")
    True
    >>> echo_of({"output": {"orig_prompt": "a boat"}}) == hash_of("a boat"), echo_of({"output": {"choices": []}})
    (True, '')
    """
    output = answer.get("output")
    output = output if isinstance(output, dict) else {}
    results = output.get("results")
    parts = [output, *(results if isinstance(results, list) else [])]
    said = {
        part["orig_prompt"] for part in parts if isinstance(part, dict) and isinstance(part.get("orig_prompt"), str)
    }
    return hash_of(said.pop()) if len(said) == 1 else ""


def prompt_of(body: bytes) -> str:
    """Return a hash of the prompt in a request; "" where it has none in the place that is echoed.

    >>> prompt_of(b'{"input": {"prompt": "a boat"}}') == hash_of("a boat"), prompt_of(b'{"input": {}}')
    (True, '')
    """
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    asked = parsed.get("input") if isinstance(parsed, dict) else None
    prompt = asked.get("prompt") if isinstance(asked, dict) else None
    return hash_of(prompt) if isinstance(prompt, str) and prompt else ""


def hash_of(prompt: str) -> str:
    """Return what stands for a prompt where prompts are not kept."""
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()
