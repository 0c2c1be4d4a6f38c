"""Families of the synthetic mirror: posts that parents, works and posts outside the dataset tie, and decoys."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

MEMBERS = 5  # ids of a family, far from each other, so in different files
GIANT = 8  # the id of a post with up to 4,000 children
WORK = 60_000_000  # pixiv's number of the first work

Fields = dict[str, str]


class Ties(NamedTuple):
    """What ties a post: its `family` in the key if it has one, its fields, and the fields that its row lacks.

    A post whose row lacks its fields `id` and `md5` is banned; one that is `missing` has no row at all.
    """

    family: str | None
    fields: Fields
    lacks: tuple[str, ...] = ()
    missing: bool = False


class _Kind(NamedTuple):
    """A kind of family: the fields of a member, from its number in the family, its id, the ids' distance and a work.

    `lacks` maps a member to the fields that its row lacks; `first_is_missing` leaves out the first member's row.
    """

    name: str
    fields: Callable[[int, int, int, int], Fields]
    lacks: dict[int, tuple[str, ...]]
    first_is_missing: bool = False


def _of_first(member: int, post_id: int, step: int, work: int) -> Fields:
    return {"parent_id": str(post_id - member * step)} if member else {}


def _of_previous(member: int, post_id: int, step: int, work: int) -> Fields:
    return {"parent_id": str(post_id - step)} if member else {}


def _of_work(member: int, post_id: int, step: int, work: int) -> Fields:
    return {"pixiv_id": str(work)}


def _in_turn(member: int, post_id: int, step: int, work: int) -> Fields:
    fields = {"pixiv_id": str(work + (member + 1) // 2)}
    return fields | {"parent_id": str(post_id - step)} if member % 2 else fields


def _over_unknown(member: int, post_id: int, step: int, work: int) -> Fields:
    work_of = {"pixiv_id": str(work)} if member in (2, 3) else {}
    return work_of | ({"parent_id": str(post_id - step)} if member in (1, 2, 4) else {})


BANNED = ("md5",)
KINDS = {  # by the last digits of the first id
    1: _Kind("children", _of_first, {}),
    2: _Kind("children of children", _of_previous, {}),
    3: _Kind("children of a missing post", _of_first, {}, first_is_missing=True),
    4: _Kind("pages of a work", _of_work, {}),
    5: _Kind("children and pages in turn", _in_turn, {}),
    6: _Kind("over a banned post", _of_previous, {2: BANNED}),
    7: _Kind("over a post without id", _over_unknown, {2: ("id", *BANNED)}),
}
PERIOD = 20  # every so many families are of the same kind
# Fields that tie nothing; `{}` is the post's own id.
DECOYS = {
    10: {"pixiv_id": "0"},
    11: {"pixiv_id": "", "parent_id": ""},
    12: {"parent_id": "{}"},
    13: {"parent_id": "0", "pixiv_id": "-1"},
    14: {"parent_id": "none", "pixiv_id": "none"},
}


def ties_of(post_id: int, posts: int) -> Ties:
    """Return what ties a post of a mirror with ids from 1 to `posts`."""
    step = max(1, posts // (MEMBERS * PERIOD)) * PERIOD
    member, number = divmod(post_id, step)
    if post_id % 10 == GIANT and post_id < 40_000:
        return Ties("giant", {"parent_id": str(GIANT)} if post_id != GIANT else {})
    kind = KINDS.get(number % PERIOD)
    if kind is None or member >= MEMBERS:
        decoy = DECOYS.get(number % PERIOD, {})
        return Ties(None, {name: value.format(post_id) for name, value in decoy.items()})
    return Ties(
        f"{kind.name} {number}",
        kind.fields(member, post_id, step, WORK + 10 * number),
        kind.lacks.get(member, ()),
        kind.first_is_missing and member == 0,
    )
