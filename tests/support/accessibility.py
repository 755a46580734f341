"""Checks a page with axe-core, the accessibility checker."""

import functools
from pathlib import Path

import axe_playwright_python
from playwright.sync_api import Page

#: Returns the scrollable elements that the keyboard does not reach, or that have no role or no name.
_UNREACHABLE = """() => [...document.querySelectorAll("body *")].filter((element) => {
  if (!/auto|scroll/.test(getComputedStyle(element).overflowY)) return false;
  if (element.scrollHeight <= element.clientHeight || element.matches("textarea")) return false;
  if (element.querySelector("button:enabled, input:enabled, [tabindex='0']")) return false;
  return element.tabIndex < 0 || !element.getAttribute("role") || !element.matches("[aria-labelledby], [aria-label]");
}).map((element) => element.outerHTML.slice(0, 100))"""

_RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
_RUN = """async (rules) => (await axe.run({runOnly: rules, resultTypes: ["violations"]})).violations.flatMap(
    ({id, nodes}) => nodes.map(({target, failureSummary}) => `${id}: ${target}: ${failureSummary}`))"""


@functools.cache
def _axe() -> str:
    return (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text("utf-8")


def violations(page: Page) -> list[str]:
    """Return what axe-core finds wrong in the page as it is now: rule, element and remedy of each violation."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(_axe())
    found: list[str] = page.evaluate(_RUN, _RULES)
    return found


def unreachable(page: Page) -> list[str]:
    """Return the scrollable elements that the keyboard does not reach, or that have no role or no name."""
    found: list[str] = page.evaluate(_UNREACHABLE)
    return found
