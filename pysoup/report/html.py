"""HTML and inline SVG, built so that no text can become markup: the one place that escapes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_VOID = frozenset({"meta", "br", "img"})
_SHAPES = frozenset({"path", "line", "rect", "circle", "polyline"})


class Markup(str):
    """Text that is HTML already; made by :func:`el`, and by hand only of constants."""

    __slots__ = ()


Child = str | Markup | None | Iterable["Child"]


def el(tag: str, *children: Child, **attributes: object) -> Markup:
    """An element. Text among ``children`` is escaped, None left out, lists are taken in turn.

    Attributes: None is left out, True stands alone, floats have two decimals. ``_`` in a name is ``-``, at its end
    nothing (``class_``).
    """
    head = "".join(_attribute(name.rstrip("_").replace("_", "-"), value) for name, value in attributes.items())
    if tag in _VOID:
        return Markup(f"<{tag}{head}>")
    if tag in _SHAPES and not children:
        return Markup(f"<{tag}{head}/>")
    return Markup(f"<{tag}{head}>{join(children)}</{tag}>")


def join(children: Iterable[Child], between: str = "") -> Markup:
    """Several pieces as one."""
    return Markup(between.join(_pieces(children)))


def clean(text: str) -> str:
    """``text`` with everything that cannot be seen (controls, half surrogates, marks that turn the writing round)
    spelled out as in Python."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def table(
    caption: str,
    header: Sequence[Child],
    rows: Iterable[Sequence[Child]],
    *,
    numeric: Iterable[int] = (),
    class_: str | None = None,
) -> Markup:
    """A table in a box that scrolls by itself: the first cell of each row is its header, the caption is read out."""
    right = set(numeric)

    def style(index: int) -> str | None:
        return "n" if index in right else None

    head = el("tr", [el("th", cell, scope="col", class_=style(i)) for i, cell in enumerate(header)])
    body = [
        el(
            "tr",
            [
                el("th", cell, scope="row", class_=style(i)) if i == 0 else el("td", cell, class_=style(i))
                for i, cell in enumerate(row)
            ],
        )
        for row in rows
    ]
    whole = el("table", el("caption", caption), el("thead", head), el("tbody", body), class_=class_)
    return scrolled(whole, caption)


def scrolled(wide: Child, label: str) -> Markup:
    """A box of its own for what may be wider than the page; the keyboard reaches it."""
    return el("div", wide, class_="scroll", tabindex="0", role="region", aria_label=label)


def _pieces(children: Iterable[Child]) -> Iterable[str]:
    for child in children:
        if child is None:
            continue
        if isinstance(child, Markup):
            yield child
        elif isinstance(child, str):
            yield escape(clean(child), quote=True)
        else:
            yield from _pieces(child)


def _attribute(name: str, value: object) -> str:
    if value is None or value is False:
        return ""
    if value is True:
        return f" {name}"
    text = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
    return f' {name}="{escape(clean(text), quote=True)}"'
