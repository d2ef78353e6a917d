"""Draws bars on a logarithmic axis as SVG, readable on light and on dark."""

import math
from html import escape

WIDTH, LEFT, RIGHT = 860, 172, 64
BAR, GAP, GROUP_HEAD = 13, 4, 30
TOP, BOTTOM = 92, 44

STYLE = """
  text { font: 12px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2328 }
  .paper { fill: #ffffff; stroke: #d1d9e0 }
  .title { font-size: 17px; font-weight: 600 }
  .quiet { fill: #59636e; font-size: 11px }
  .head { font-weight: 600 }
  .grid { stroke: #d1d9e0; stroke-width: 1 }
  .ours { fill: #1a7f37 } .hand { fill: #8c959f } .today { fill: #bc4c00 }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc }
    .paper { fill: #0d1117; stroke: #3d444d }
    .quiet { fill: #9198a1 }
    .grid { stroke: #3d444d }
    .ours { fill: #3fb950 } .hand { fill: #6e7681 } .today { fill: #f0883e }
  }
"""

KINDS = [("ours", "this crate"), ("hand", "by hand, no supervision"), ("today", "other tools")]


def kind(who):
    return "ours" if who == "mirakuru" else "hand" if who.startswith("by hand") else "today"


def number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def draw(title, subtitle, groups):
    """`groups` are pairs of a title and bars. Each bar is a pair of a tool and milliseconds."""
    values = [value for _, bars in groups for _, value in bars]
    # A negative or very small lag ends at the left edge; the number beside the bar tells its value.
    low = max(-2, math.floor(math.log10(min((v for v in values if v > 0), default=0.1))))
    high = math.ceil(math.log10(max(values, default=1)))
    scale = (WIDTH - LEFT - RIGHT) / (high - low)
    height = TOP + sum(GROUP_HEAD + len(bars) * (BAR + GAP) for _, bars in groups) + BOTTOM

    def x(value):
        return LEFT + max(0.0, math.log10(max(value, 1e-9)) - low) * scale

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}"'
        f' viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">',
        f"<style>{STYLE}</style>",
        f'<rect class="paper" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
        f'<text class="title" x="16" y="30">{escape(title)}</text>',
        f'<text class="quiet" x="16" y="49">{escape(subtitle)}</text>',
    ]
    at = 16
    for name, label in KINDS:
        out.append(f'<rect class="{name}" x="{at}" y="62" width="12" height="12" rx="2"/>')
        out.append(f'<text x="{at + 18}" y="72">{label}</text>')
        at += 40 + 7 * len(label)
    bottom = height - BOTTOM + 6
    for power in range(low, high + 1):
        tick = 10.0**power
        label = f"{tick:,.0f}" if power >= 0 else f"{tick:g}"
        out.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP}" y2="{bottom}"/>')
        out.append(f'<text class="quiet" x="{x(tick):.1f}" y="{bottom + 15}" text-anchor="middle">{label} ms</text>')
    y = TOP
    for head, bars in groups:
        out.append(f'<text class="head" x="16" y="{y + 21}">{escape(head)}</text>')
        y += GROUP_HEAD
        for who, value in bars:
            width = max(x(value) - LEFT, 2)
            name = kind(who)
            weight = ' class="head"' if name == "ours" else ""
            out.append(f'<text{weight} x="{LEFT - 8}" y="{y + 11}" text-anchor="end">{escape(who)}</text>')
            out.append(f'<rect class="{name}" x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2"/>')
            out.append(f'<text{weight} x="{LEFT + width + 6:.1f}" y="{y + 11}">{number(value)}</text>')
            y += BAR + GAP
    out.append("</svg>")
    return "\n".join(out) + "\n"
