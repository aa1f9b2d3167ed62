"""Texts that end with their own digest, so that damage is told from what was written."""

import hashlib

_MARK = "# sha256 of all above (remove this line after a change): "


def seal(text: str) -> str:
    """Return a TOML text with its digest in a last line, a comment.

    Args:
        text: Ends with a line break.
    """
    return f"{text}{_MARK}{_digest(text)}\n"


def check_seal(text: str) -> None:
    r"""Refuse a text whose last line has the digest of something else; one without such a line is anybody's.

    Raises:
        ValueError: It has.

    Example:
        >>> check_seal(seal("lr = 1.0\n"))
        >>> check_seal(seal("lr = 1.0\n").replace("1", "2", 1))
        Traceback (most recent call last):
            ...
        ValueError: it is damaged or was changed: the digest in its last line is of something else
    """
    body, mark, digest = text.rpartition(_MARK)
    if mark and digest.strip() != _digest(body):
        raise ValueError("it is damaged or was changed: the digest in its last line is of something else")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
