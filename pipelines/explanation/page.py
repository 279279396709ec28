"""One self-contained page of explanations, written part by part: no more than one picture is held at a time."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from ..report import STYLE, html_table
from .methods import METHODS, evidence


class Page:
    """A page that is written part by part; use it in a `with` block.

    Args:
        path: The file to write.
        title: Its heading.
    """

    def __init__(self, path: Path, title: str) -> None:
        self.path = path
        self.title = title
        self._file: TextIO | None = None

    def __enter__(self) -> "Page":
        self._file = self.path.open("w", encoding="utf-8")
        title = html.escape(self.title)
        self.write(
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{title}</title><style>{STYLE}</style></head><body><main>\n<h1>{title}</h1>\n"
        )
        return self

    def __exit__(self, *error: object) -> None:
        self.write("</main></body></html>\n")
        if self._file:
            self._file.close()

    def write(self, text: str) -> None:
        """Writes HTML as it is."""
        if self._file is None:
            raise ValueError("page must be open: write it in a `with` block. Received: one that is not")
        self._file.write(text)

    def methods(self, names: Sequence[str], warnings: Sequence[str], pooling: str | None) -> None:
        """Writes what the methods show, and how far they can be trusted in models of a pooling."""
        if not names:
            return
        rows = [
            {
                "method": name,
                "shows": METHODS[name].shows,
                "of a class": "yes" if METHODS[name].per_class else "no",
                "pointing test": f"{evidence(name, pooling).hits}/{evidence(name, pooling).pictures}",
                "source": METHODS[name].source,
            }
            for name in names
        ]
        self.write(f'<div class="wide">{html_table(rows)}</div>\n')
        chance = evidence(names[0]).chance
        self.note(
            "Pointing test: pictures whose map is highest at a planted cue that alone tells the class, of small models "
            f"trained for it; blind guessing hits {chance:.1%}. A map shows what this method says of this model, not "
            "what is in the picture."
        )
        for text in warnings:
            self.write(f"<p><strong>{html.escape(text)}.</strong></p>\n")
        self.write("<h2>Pictures</h2>\n")

    def heading(self, text: str) -> None:
        self.write(f"<h2>{html.escape(text)}</h2>\n")

    def note(self, text: str) -> None:
        """Writes a paragraph in small type."""
        self.write(f'<p class="note">{html.escape(text)}</p>\n')

    def table(self, rows: Sequence[dict[str, str]]) -> None:
        """Writes rows, column name to text."""
        self.write(f'<div class="wide">{html_table(rows)}</div>\n')

    def picture(self, text: str, file: Path) -> None:
        """Writes a line of text and a PNG file, into the page itself."""
        data = base64.b64encode(file.read_bytes()).decode("ascii")
        text = html.escape(text)
        self.write(f'<p>{text}</p><img alt="{text}" src="data:image/png;base64,{data}">\n')
