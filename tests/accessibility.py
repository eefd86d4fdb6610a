"""Checks of a page in a browser for people who use a keyboard or a screen reader, or see little."""

from __future__ import annotations

from typing import Any, NamedTuple

from chrome import Chrome

# Contrast of every visible text with what is behind it (WCAG 2, success criterion 1.4.3). Where the
# background is a gradient, each of its colours counts.
MEASURE_CONTRAST = """
const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
function parse(colour) {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = colour;
  canvas.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
  return [r, g, b, a / 255];
}
const blend = (top, bottom, alpha = top[3]) =>
  [0, 1, 2].map(i => top[i] * alpha + bottom[i] * (1 - alpha));
function luminance(rgb) {
  const [r, g, b] = rgb.map(v => v / 255).map(
    v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function contrast(a, b) {
  const [high, low] = [luminance(a), luminance(b)].sort((x, y) => y - x);
  return (high + 0.05) / (low + 0.05);
}
function backgrounds(element) {  // the opaque colours that can be behind the element's text
  if (!element) return [[255, 255, 255]];
  const style = getComputedStyle(element), colour = parse(style.backgroundColor);
  let below = colour[3] >= 1 ? [colour.slice(0, 3)]
    : backgrounds(element.parentElement).map(other => blend(colour, other));
  const gradient = style.backgroundImage.match(/(?:rgba?|color|oklab|oklch)\\([^()]*\\)/g) ?? [];
  return below.flatMap(other => [other, ...gradient.map(c => blend(parse(c), other))]);
}
function opacity(element) {
  return element ? getComputedStyle(element).opacity * opacity(element.parentElement) : 1;
}
function measure(element, colour, text) {
  const behind = backgrounds(element), top = parse(colour);
  const alpha = top[3] * opacity(element);
  const ratios = behind.map(b => contrast(blend(top, b, alpha), b));
  return [Math.min(...ratios), text.trim().slice(0, 60)];
}
const results = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement, range = document.createRange();
  range.selectNodeContents(walker.currentNode);
  const {width, height} = range.getBoundingClientRect();
  const isShown = element.checkVisibility({opacityProperty: true, visibilityProperty: true});
  if (walker.currentNode.data.trim() && isShown && width > 1 && height > 1)
    results.push(measure(element, getComputedStyle(element).color, walker.currentNode.data));
}
for (const field of document.querySelectorAll('input:not([type=range], [type=file]), textarea')) {
  if (!field.checkVisibility({visibilityProperty: true})) continue;
  const pseudo = field.value ? undefined : '::placeholder';
  const text = field.value || field.placeholder;
  if (text) results.push(measure(field, getComputedStyle(field, pseudo).color, text));
}
return results;
"""
CONTROLS = {"button", "checkbox", "combobox", "link", "listbox", "slider", "spinbutton", "textbox"}


class Contrast(NamedTuple):
    """The contrast of a text, from 1 (invisible) to 21 (black on white)."""

    ratio: float
    text: str


def measure_contrast(chrome: Chrome) -> list[Contrast]:
    """The contrast of every visible text of the page, the lowest first."""
    return sorted(Contrast(*result) for result in chrome.run(MEASURE_CONTRAST))


def list_controls(chrome: Chrome) -> list[tuple[str, str]]:
    """Role and name of every control, as the browser tells them to a screen reader."""
    chrome.driver.execute_cdp_cmd("Accessibility.enable", {})
    tree = chrome.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})
    return [
        (_read(node, "role"), _read(node, "name"))
        for node in tree["nodes"]
        if not node["ignored"] and _read(node, "role").lower() in CONTROLS
    ]


def _read(node: dict[str, Any], key: str) -> str:
    return str(node.get(key, {}).get("value", "")).strip()
