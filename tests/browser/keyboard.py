"""Somebody who has no mouse: goes from one thing to the next with Tab, and sees where the focus is."""

from __future__ import annotations

from .person import Person

MOST = 200
"""Presses of Tab after which something is not there, or holds the focus."""

_FOCUSED = """
() => {
  const one = document.activeElement;
  if (!one || one === document.body) return null;
  const look = () => {
    const style = getComputedStyle(one);
    return [style.outline, style.backgroundColor, style.borderColor, style.boxShadow, style.color,
            style.textDecorationLine].join("|");
  };
  const name = one.getAttribute("aria-label") || one.labels?.[0]?.innerText || one.innerText || one.value
               || one.title || "";
  const style = getComputedStyle(one);
  const seen = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0;
  const focused = look();
  let changes = false;
  if (!seen) {
    one.blur();
    changes = look() !== focused;
    one.focus();
  }
  const all = [...document.querySelectorAll("*")];
  return {name: name.trim(), place: all.indexOf(one), seen: seen || changes, html: one.outerHTML.slice(0, 200),
          ours: !!one.closest("#content")};
}
"""
_USABLE = """
() => [...document.querySelectorAll("#content :is(a[href], button, input, select, textarea, summary)")]
  .filter((one) => one.checkVisibility() && one.type !== "hidden" && !one.disabled).length
"""


class Keyboard:
    """The keys of a window."""

    def __init__(self, person: Person) -> None:
        self._person = person
        self._page = person.page

    def to(self, name: str) -> None:
        """Press Tab until the focus is on what is called so, or begins so."""
        for _ in range(MOST):
            self._page.keyboard.press("Tab")
            focused = self._page.evaluate(_FOCUSED)
            if focused and focused["name"].startswith(name):
                assert focused["seen"], f"nobody sees that the focus is on {focused['html']}"
                return
        raise AssertionError(f"Tab does not come to {name!r} on {self._page.url}")

    def enter(self, name: str) -> None:
        """Go there and press Enter, which leads to another page."""
        self._follow(name, "Enter")

    def space(self, name: str) -> None:
        """Go there and press the space bar, which leads to another page."""
        self._follow(name, " ")

    def write(self, name: str, text: str) -> None:
        """Go to a field and write."""
        self.to(name)
        self._page.keyboard.press("Control+a")
        self._page.keyboard.type(text)

    def go_around(self) -> None:
        """See that Tab comes to all that can be used, in its order on the page, and out of the page again."""
        self._page.evaluate("document.activeElement.blur(); window.getSelection().removeAllRanges()")
        wanted, places = self._page.evaluate(_USABLE), []
        for _ in range(MOST):
            self._page.keyboard.press("Tab")
            focused = self._page.evaluate(_FOCUSED)
            if focused is None or (places and focused["place"] == places[0]):
                break
            assert focused["seen"], f"nobody sees that the focus is on {focused['html']}"
            if focused["ours"]:
                places.append(focused["place"])
        else:
            raise AssertionError(f"Tab does not come out of {self._page.url}")
        assert places == sorted(places)
        assert len(places) >= wanted, f"Tab comes to {len(places)} of {wanted} on {self._page.url}"

    def _follow(self, name: str, key: str) -> None:
        self.to(name)
        with self._page.expect_navigation():
            self._page.keyboard.press(key)
