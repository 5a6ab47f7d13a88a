"""Markdown tables."""

from collections.abc import Iterable


def markdown(head: Iterable[str], rows: Iterable[Iterable[str]], *, left: int = 1) -> str:
    """A table of text. The first `left` columns are aligned left, the others right.

    >>> print(markdown(["method", "seconds"], [["targeted", "1.5"]]))
    | method | seconds |
    |---|---:|
    | targeted | 1.5 |
    """
    head = list(head)
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * left + "---:|" * (len(head) - left), *lines[1:]])
