"""Tables of counts: aligned text for a terminal, HTML for a notebook."""

import html
from collections.abc import Sequence

Lines = Sequence[Sequence[str]]


def as_text(lines: Lines, *, words: int = 1) -> list[str]:
    """Pads every column to one width.

    Args:
      lines: the cells of each line, the header first.
      words: how many columns, from the left, hold words. They are aligned to the left,
        and numbers to the right.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i < words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]


def as_html(lines: Lines, *, words: int = 1, totals: int = 0) -> str:
    """Writes an HTML table whose last ``totals`` lines are its foot."""

    def row(line: Sequence[str], tag: str) -> str:
        cells = []
        for i, cell in enumerate(line):
            side = "left" if i < words else "right"
            cell = html.escape(cell)
            cells.append(f'<{tag} style="text-align: {side}">{cell}</{tag}>')
        return f"<tr>{''.join(cells)}</tr>"

    header, *rest = lines
    end = len(rest) - totals
    body = "".join(row(line, "td") for line in rest[:end])
    foot = "".join(row(line, "th") for line in rest[end:])
    return (
        f"<table><thead>{row(header, 'th')}</thead><tbody>{body}</tbody>"
        f"<tfoot>{foot}</tfoot></table>"
    )
