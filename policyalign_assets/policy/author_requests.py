"""The requests that a policy's author wrote under a rule, split into seeds and held-out cases.

A request under `violates` or `allowed` is either an example for synthesis or a held-out test case,
never both. The split depends on the rule's id, the request and a seed alone, so that an edit
elsewhere moves nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from policyalign_assets.policy.model import Rule


@dataclass(frozen=True)
class AuthorRequests:
    """Requests that break a rule, and close ones that do not."""

    violates: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()


def heldout_requests(rule: Rule, seed: int) -> AuthorRequests:
    """The requests for evaluation: half of each kind, rounded up."""
    return _half(rule, seed, heldout=True)


def seed_requests(rule: Rule, seed: int) -> AuthorRequests:
    """The requests that synthesis may use as examples: those that are not held out."""
    return _half(rule, seed, heldout=False)


def _half(rule: Rule, seed: int, heldout: bool) -> AuthorRequests:
    # A request that stands in both fields, or twice, counts once.
    seen: set[str] = set()
    return AuthorRequests(
        _part(rule.violates, rule.rule_id, seed, heldout, seen),
        _part(rule.allowed, rule.rule_id, seed, heldout, seen),
    )


def _part(
    requests: tuple[str, ...], rule_id: str, seed: int, heldout: bool, seen: set[str]
) -> tuple[str, ...]:
    distinct = []
    for request in requests:
        key = _key(request)
        if key and key not in seen:
            seen.add(key)
            distinct.append(request)
    order = sorted(distinct, key=lambda r: _digest(f"{seed}/{rule_id}/{_key(r)}"))
    cut = -(-len(order) // 2)
    chosen = set(order[:cut] if heldout else order[cut:])
    return tuple(request for request in distinct if request in chosen)


def _key(request: str) -> str:
    return " ".join(request.casefold().split())


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8")).digest()
