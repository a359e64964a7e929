"""Plots for perf/: panels of lines as an SVG, with nothing but text."""

import math

COLOURS = ["#c0392b", "#2471a3", "#1e8449", "#b7950b", "#6c3483", "#5d6d7e"]
PANEL_WIDTH, PANEL_HEIGHT, LEFT, TOP, BOTTOM, GAP = 460, 300, 70, 40, 50, 30


def svg(path, panels, columns=2):
    """Panels of lines: each {"title", "x", "y", "log_x", "series": {name: [(x, y), …]}}; the y axis starts at 0."""
    rows = math.ceil(len(panels) / columns)
    width, height = columns * (PANEL_WIDTH + GAP), rows * (PANEL_HEIGHT + GAP)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12">',
             f'<rect width="{width}" height="{height}" fill="white"/>']
    for i, panel in enumerate(panels):
        parts += [f'<g transform="translate({i % columns * (PANEL_WIDTH + GAP)},{i // columns * (PANEL_HEIGHT + GAP)})">',
                  *panel_svg(panel), "</g>"]
    with open(path, "w") as file:
        file.write("\n".join([*parts, "</svg>"]) + "\n")


def panel_svg(panel):
    series = {name: [p for p in points if p[1] is not None] for name, points in panel["series"].items()}
    xs = sorted({x for points in series.values() for x, _ in points}) or [0]
    top = nice(max((y for points in series.values() for _, y in points), default=1))
    scale = (lambda x: math.log10(x + 1)) if panel.get("log_x") else (lambda x: x)
    low, high = scale(xs[0]), scale(xs[-1])
    wide, tall = PANEL_WIDTH - LEFT - 10, PANEL_HEIGHT - TOP - BOTTOM
    def at(x, y):
        across = (scale(x) - low) / (high - low) if high > low else 0.5
        return LEFT + wide * across, TOP + tall * (1 - y / top)
    yield f'<text x="{LEFT}" y="18" font-weight="bold">{panel["title"]}</text>'
    yield f'<text x="{LEFT + wide / 2}" y="{PANEL_HEIGHT - 12}" text-anchor="middle">{panel["x"]}</text>'
    yield f'<text transform="translate(14,{TOP + tall / 2}) rotate(-90)" text-anchor="middle">{panel["y"]}</text>'
    for i in range(5):
        _, y = at(xs[0], top * i / 4)
        yield f'<path d="M{LEFT} {y:.1f}h{wide}" stroke="#ddd"/><text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick(top * i / 4)}</text>'
    for x in xs if panel.get("log_x") else [xs[0] + (xs[-1] - xs[0]) * i / 4 for i in range(5)]:
        yield f'<text x="{at(x, 0)[0]:.1f}" y="{TOP + tall + 16}" text-anchor="middle">{tick(x)}</text>'
    for i, (name, points) in enumerate(series.items()):
        colour = COLOURS[i % len(COLOURS)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*p) for p in points))
        yield f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        if panel.get("log_x"):
            yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in (at(*p) for p in points))
        yield f'<text x="{LEFT + 8 + 150 * (i % 3)}" y="{34 + 14 * (i // 3)}" fill="{colour}">{name}</text>'


def tick(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def nice(top):
    """The next of 1, 2, 4, 8, 10 × a power of ten: an axis that ends on a round number."""
    power = 10 ** math.floor(math.log10(top)) if top > 0 else 1
    return next(power * step for step in (1, 2, 4, 8, 10) if power * step >= top * 0.999)
