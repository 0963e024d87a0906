"""HTML out of values: everything that is not markup is escaped here."""

from collections.abc import Sequence
from html import escape


def tag(name: str, content: str = "", /, **attributes: object) -> str:
    """An element. Attribute values are escaped, `content` is markup; underscores in names become hyphens."""
    values = "".join(f' {k.rstrip("_").replace("_", "-")}="{escape(str(v))}"' for k, v in attributes.items())
    return f"<{name}{values}>{content}</{name}>"


def section(name: str, title: str, lead: str, body: str) -> str:
    """One section: a heading, a sentence that says how to read it, and its plots. `body` is markup."""
    return tag("section", tag("h2", escape(title)) + tag("p", escape(lead), class_="lead") + body, id=name)


def figure(name: str, words: str, plot: str) -> str:
    """A plot under its name and what it shows. `plot` is markup."""
    caption = tag("b", escape(name)) + " " + tag("span", escape(words))
    return tag("figure", tag("figcaption", caption) + plot)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, closed: str = "") -> str:
    """A table of plain text that scrolls sideways where it must; cells that say `closed` are dimmed."""
    head = tag("tr", "".join(tag("th", escape(name)) for name in columns))
    body = ""
    for row in rows:
        cells = (tag("td", escape(cell), **({"class_": "closed"} if closed and cell == closed else {})) for cell in row)
        body += tag("tr", "".join(cells))
    return tag("div", tag("table", head + body), class_="scroll")


def legend(entries: Sequence[tuple[str, str, float]]) -> str:
    """A list of (name, kind, shade) as HTML."""
    items = [
        tag("li", tag("i", class_=f"swatch {kind}", style=f"opacity:{shade:.2f}") + escape(name))
        for name, kind, shade in entries
    ]
    return tag("ul", "".join(items), class_="legend")
