"""Quality against price as an SVG by hand: readable on light and dark pages, no dependencies."""

import html

WIDTH, HEIGHT = 880, 560
LEFT, RIGHT, TOP, BOTTOM = 70, 210, 40, 60
COLOURS = ("#3b82d6", "#d9772b", "#2f9e60", "#b05bc4", "#c94f5b", "#8a8f2a")
STYLE = """
  text { font: 13px sans-serif; fill: #555 } .title { font-size: 15px; font-weight: bold } .small { font-size: 11px }
  .axis { stroke: #888; stroke-width: 1 } .grid { stroke: #888; stroke-width: 0.5; stroke-opacity: 0.35 }
  .goal { stroke: #888; stroke-width: 1; stroke-dasharray: 6 4 } .frontier { stroke: #888; stroke-width: 6; stroke-opacity: 0.25; fill: none }
  @media (prefers-color-scheme: dark) { text { fill: #bbb } }
"""


def ticks(low, high, step):
    first = -int(-low / step + 1e-9)
    return [round(i * step, 6) for i in range(first, int(high / step + 1e-9) + 1)]


def frontier(points):
    """Those of (price, quality) that no other beats in both, from the cheapest on."""
    best, out = -1.0, []
    for x, y in sorted(points, key=lambda p: (p[0], -p[1])):
        if y > best:
            best = y
            out.append((x, y))
    return out


def quality_plot(title, families, single, goals):
    """`families`: name -> [(price, quality)], drawn as lines with dots; `single`: [(name, price, quality)];
    `goals`: (price or None, quality or None, text), dashed lines across."""
    every = [p for points in families.values() for p in points] + [(x, y) for _, x, y in single]
    high_x = max(1.05, max(x for x, _ in every) + 0.05)
    low_y = int(min(y for _, y in every) * 20) / 20
    high_y = min(1.0, int(max(y for _, y in every) * 20 + 1) / 20)

    def at(x, y):
        return (LEFT + x / high_x * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - (y - low_y) / (high_y - low_y) * (HEIGHT - TOP - BOTTOM))

    def line(x1, y1, x2, y2, kind):
        return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'

    def text(x, y, words, anchor="start", kind="", more=""):
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}" {more}>{html.escape(words)}</text>'

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">', f"<title>{html.escape(title)}</title>", f"<style>{STYLE}</style>"]
    out.append(text(LEFT, 22, title, kind="title"))
    for x in ticks(0, high_x, 0.1):
        px, bottom = at(x, low_y)
        out.append(line(px, bottom, px, TOP, "grid"))
        out.append(text(px, bottom + 18, f"{x:g}", "middle"))
    for y in ticks(low_y, high_y, 0.05):
        left, py = at(0, y)
        out.append(line(left, py, WIDTH - RIGHT, py, "grid"))
        out.append(text(left - 8, py + 4, f"{y:.2f}", "end"))
    out.append(line(*at(0, low_y), *at(0, high_y), "axis"))
    out.append(line(*at(0, low_y), *at(high_x, low_y), "axis"))
    out.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 16, "cost, of the largest tier's alone", "middle"))
    out.append(text(18, (TOP + HEIGHT - BOTTOM) / 2, "accuracy", "middle", more=f'transform="rotate(-90 18 {(TOP + HEIGHT - BOTTOM) / 2})"'))
    for x, y, words in goals:
        if y is not None:
            out.append(line(*at(0, y), *at(high_x, y), "goal"))
            out.append(text(at(0, y)[0] + 6, at(0, y)[1] - 5, words, kind="small"))
        else:
            out.append(line(*at(x, low_y), *at(x, high_y), "goal"))
            out.append(text(at(x, low_y)[0] + 5, at(x, low_y)[1] - 8, words, kind="small"))
    best = " ".join(f"{px:.1f},{py:.1f}" for px, py in (at(*p) for p in frontier(every)))
    out.append(f'<polyline class="frontier" points="{best}"/>')
    legend = TOP + 10
    for (name, points), colour in zip(families.items(), COLOURS):
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in (at(*p) for p in sorted(points)))
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        out += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3.5" fill="{colour}"/>' for px, py in (at(*p) for p in points)]
        out.append(f'<rect x="{WIDTH - RIGHT + 16}" y="{legend - 9}" width="14" height="4" fill="{colour}"/>')
        out.append(text(WIDTH - RIGHT + 38, legend, name))
        legend += 22
    for i, (name, x, y) in enumerate(single):
        px, py = at(x, y)
        out.append(f'<path d="M{px - 5:.1f} {py:.1f}L{px:.1f} {py - 5:.1f}L{px + 5:.1f} {py:.1f}L{px:.1f} {py + 5:.1f}Z" fill="none" stroke="#888" stroke-width="1.8"/>')
        out.append(text(px, py + (20 if i % 2 == 0 else -10), name, "middle"))  # neighbours not in line
    out.append(f'<rect x="{WIDTH - RIGHT + 16}" y="{legend - 10}" width="14" height="6" fill="#888" fill-opacity="0.25"/>')
    out.append(text(WIDTH - RIGHT + 38, legend, "what none beats"))
    return "\n".join([*out, "</svg>", ""])
