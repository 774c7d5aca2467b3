"""Looking at a page as axe-core does: contrast, names of what can be used, headings, tables, languages."""

from __future__ import annotations

from .person import Person

RULES = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa")
DJANGOS = ("#header", "#nav-sidebar", "#toggle-nav-sidebar", ".breadcrumbs")
"""What no page of ours has made: looked at by Django's own tests, and left out here."""
KNOWN = {
    # WCAG 2.2 wants 24 pixels; the links of Django's filters are 20 pixels high, one below the other.
    "target-size": "#changelist-filter a",
}
"""Rules that elements of Django inside our pages break, with the selector of these elements."""

_RUN = """
async ([rules, left_out, known]) => {
  const found = await axe.run(
    {exclude: left_out.map((one) => [one])},
    {runOnly: {type: "tag", values: rules}, resultTypes: ["violations"]},
  );
  const isKnown = (rule, target) => rule in known && document.querySelector(target)?.matches(known[rule]);
  return found.violations.flatMap((rule) => rule.nodes
    .filter((node) => !isKnown(rule.id, node.target.join(" ")))
    .map((node) => `${rule.id}: ${rule.help}: ${node.target.join(" ")}\\n  ${node.html.slice(0, 300)}`));
}
"""


def complaints(person: Person, axe: str) -> list[str]:
    """Return what axe-core has against the page, without what is known of Django's own elements."""
    before = len(person.troubles)
    person.page.evaluate(axe)
    found: list[str] = person.page.evaluate(_RUN, [RULES, DJANGOS, KNOWN])
    # The policy refuses style sheets of axe-core's own, too.
    del person.troubles[before:]
    return found
