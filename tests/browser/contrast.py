"""How well the text of a page can be read, from what the browser computed (WCAG 2.1)."""

from __future__ import annotations

from typing import Any

WANTED = 4.5

FIND = """(wanted) => {
  const parse = (colour) => {
    const found = colour.match(/[\\d.]+/g).map(Number);
    const scale = colour.startsWith("color(") ? 255 : 1;
    return [...found.slice(0, 3).map((part) => part * scale), found[3] ?? 1];
  };
  const over = ([r, g, b, a], below) => [r, g, b].map((part, at) => a * part + (1 - a) * below[at]);
  const parent = (node) => node.parentElement || node.getRootNode().host || null;
  const ground = (node) => {
    if (!node) return [255, 255, 255];
    const style = getComputedStyle(node);
    const own = parse(style.backgroundColor);
    return own[3] === 1 ? own.slice(0, 3) : over(own, ground(parent(node)));
  };
  const opacity = (node) => (node ? getComputedStyle(node).opacity * opacity(parent(node)) : 1);
  const luminance = (colour) => {
    const linear = colour.map((channel) => {
      const c = channel / 255;
      return c > 0.04045 ? ((c + 0.055) / 1.055) ** 2.4 : c / 12.92;
    });
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const poor = [];
  let seen = 0;
  const look = (node, said) => {
    if (!said.trim() || node.closest("style, script")) return;
    if (!node.checkVisibility({ visibilityProperty: true })) return;
    if (node.closest("button, input, select")?.disabled) return; // which nobody can use
    const style = getComputedStyle(node);
    const below = ground(node);
    const colour = parse(node.closest("svg") ? style.fill : style.color);
    colour[3] *= opacity(node);
    const two = [luminance(over(colour, below)), luminance(below)];
    const ratio = (Math.max(...two) + 0.05) / (Math.min(...two) + 0.05);
    seen += 1;
    const where = `${node.tagName}, ${style.color} on ${below.map(Math.round)}`;
    if (ratio < wanted) poor.push(`${ratio.toFixed(2)}: ${said.trim().slice(0, 40)} (${where})`);
  };
  const walk = (root) => {
    for (const node of root.querySelectorAll("*")) {
      const own = [...node.childNodes].filter((child) => child.nodeType === 3);
      look(node, own.map((child) => child.textContent).join(" "));
      if (node.matches("input:not([type=range]), textarea, select")) look(node, node.value);
      if (node.shadowRoot) walk(node.shadowRoot);
    }
  };
  walk(document);
  return [seen, [...new Set(poor)]];
}"""


def poorly_readable(page: Any, least: int = 1) -> list[str]:
    """Texts with less contrast than 4.5 to 1; at least ``least`` must be there to be read."""
    seen, poor = page.evaluate(FIND, WANTED)
    assert seen >= least, f"only {seen} texts"
    return poor
