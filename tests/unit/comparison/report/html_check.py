"""Reads the report's page as a strict parser would."""

from html.parser import HTMLParser

VOID = {"meta", "input", "br", "hr", "link", "img", "wbr"}
# Attributes through which a browser would load something.
LOADING = {"src", "srcset", "poster", "data", "action", "background", "xlink:href"}


class Page(HTMLParser):
    """Checks that tags are balanced, and collects ids, links, tables and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.ids: list[str] = []
        self.text = ""
        self.cells: list[list[str]] = []
        self._cell = False
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.ids += [value for key, value in attributes if key == "id"]
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
            self._cell = True
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.ids += [value for key, value in attributes if key == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            return
        self.text += data
        if self._cell:
            self.cells[-1][-1] += data

    def rows(self, first: str) -> list[list[str]]:
        """All table rows whose first cell is this."""
        return [[cell.strip() for cell in row] for row in self.cells if row and row[0].strip() == first]

    def loads(self) -> list[str]:
        """What the page would fetch: links elsewhere, sources, styles' urls."""
        found = []
        for tag, attributes in self.tags:
            found += [f"{tag} {key}" for key in attributes if key in LOADING]
            found += [value for key, value in attributes.items() if key == "href" and not value.startswith("#")]
            found += [tag] if tag in ("script", "link", "iframe", "object", "embed", "img", "base") else []
        return found


def squeeze(text: str) -> str:
    """Text with single spaces."""
    return " ".join(text.split())
