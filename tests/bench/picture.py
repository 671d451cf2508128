"""The figures as a picture."""

import itertools
import statistics
from html import escape

from figures import NAMES, STUDIES, added, against, interval, middle

CONNECTIONS = {"c1": 1, "c16": 16, "browser": 64, "c512": 512}
COLOURS = {"hostward": "#1f5fa8", "nginx": "#3a8f4d", "haproxy": "#c2571a", "relay": "#888888"}
WIDTH, LABELS, ROW, GAP = 960, 320, 20, 56


def picture(profiles):
    """Panels, one below the other."""
    parts, top = [], GAP

    def text(x, y, words, more=""):
        parts.append(f'<text x="{x:.0f}" y="{y:.0f}" {more}>{escape(words)}</text>')

    def bars(title, rows, mark=0, left=0, width=WIDTH, labels=LABELS):
        """Rows of label, colour, and value with its interval."""
        nonlocal top
        if not rows:
            return
        text(left + 10, top - 14, title, 'font-weight="bold"')
        most, zero = max(mark, *(row[2][-1] for row in rows)) * 1.12, left + labels
        x = lambda value: zero + max(value, 0) / most * (width - labels - 40)
        for label, colour, value in rows:
            text(zero - 8, top + 13, label, 'text-anchor="end"')
            size = f'width="{x(value[0]) - zero:.1f}" height="{ROW - 5}"'
            parts.append(f'<rect x="{zero}" y="{top + 2}" {size} fill="{colour}"/>')
            if len(value) == 3:
                parts.append(f'<path d="M{x(value[1]):.1f} {top + 9.5}H{x(value[2]):.1f}" stroke="#000000"/>')
            text(x(value[-1]) + 6, top + 14, f"{value[0]:.2f}" if most < 10 else f"{value[0]:.1f}")
            top += ROW
        if mark:
            line = f"M{x(mark):.1f} {top - ROW * len(rows) - 4}V{top + 2}"
            parts.append(f'<path d="{line}" stroke="#000000" stroke-dasharray="4 3"/>')
        top += GAP

    def costs(name):
        rounds = profiles[name]["rounds"]
        return {peer: (statistics.median(middle(of[peer], "cpu_us") for of in rounds),)
                for peer in NAMES if peer in rounds[0] and peer not in ("control", "direct")}

    by_peer = [name for name in profiles if name not in STUDIES]
    bars("hostward's CPU time for a request in units of nginx's (line: the same)",
         [(profiles[name]["title"], COLOURS["hostward"], against(profiles[name], "nginx")) for name in by_peer], 1)
    for two in itertools.zip_longest(by_peer[::2], by_peer[1::2]):
        begin, ends = top, []
        for column, name in enumerate(filter(None, two)):
            top = begin
            bars(f"CPU µs a request: {profiles[name]['title']}",
                 [(NAMES[peer], COLOURS.get(peer, "#777777"), cost) for peer, cost in costs(name).items()],
                 left=column * WIDTH // 2, width=WIDTH // 2, labels=LABELS // 2 + 20)
            ends.append(top)
        top = max(ends)
    bars("CPU µs a request by number of connections",
         [(f"{NAMES[peer]}, {CONNECTIONS[name]}", COLOURS[peer], costs(name)[peer]) for name in CONNECTIONS
          if name in profiles for peer in ("hostward", "nginx", "haproxy", "relay") if peer in costs(name)])
    if "latency" in profiles:
        found = profiles["latency"]
        bars("Added latency in µs at the rate that keeps nginx busy for 60 % of the time",
             [(f"{NAMES[peer]}, p{float(quantile) * 100:g}", COLOURS[peer],
               interval(added(found, peer, "0.6", quantile)))
              for quantile in ("0.5", "0.99") for peer in COLOURS if peer in found["rounds"][0]])
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}"'
    return (f'{head} font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="#ffffff"/>\n'
            + "\n".join(parts) + "\n</svg>\n")
