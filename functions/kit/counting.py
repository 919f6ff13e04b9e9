"""Numbers of things as people say them: 1 key, 2 keys. The surprising thing: none is many, too."""

from __future__ import annotations


def counted(count: int, one: str, many: str | None = None) -> str:
    """So many of them, in the right form.

    Args:
        count: how many there are.
        one: what a single one is called; a verb may follow: `user is`.
        many: what several are called, if it isn't `one` with an s: `users are`.
    """
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"
