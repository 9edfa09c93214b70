"""The page that `--html` writes: plots as SVG, with nothing to load from anywhere."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from html import escape
from string import Template

from ordersys import __version__
from ordersys.bench.plan import percentile
from ordersys.bench.run import Result

WIDTH, HEIGHT, LEFT, RIGHT, BOTTOM = 860, 260, 56, 28, 28
_COLOURS = ("#2f6fde", "#d9702b", "#2a9d62")

_PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>ordersys bench</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 900px; margin: 2rem auto; padding: 0 1rem; color: #1b1f24 }
svg { width: 100%; height: auto } table { border-collapse: collapse } td, th { padding: .2rem .8rem; text-align: right }
th:first-child, td:first-child { text-align: left } tr:nth-child(even) { background: #f3f5f8 }
text { font: 12px system-ui, sans-serif; fill: #57606a } .right { color: #1a7f4b } .wrong { color: #c62828 }
@media (prefers-color-scheme: dark) {
  body { background: #14171b; color: #e4e7eb } tr:nth-child(even) { background: #1e232a } text { fill: #9aa4b0 }
}
</style>
<h1>$rate orders/s</h1>
<p>$orders orders, $how. Verdict: <strong class="$right">$right</strong> ($counts).</p>
<table><tr><th>ms</th>$heads</tr>$rows</table>
<h2>Latency by percentile</h2>
$latency
<h2>Orders per second</h2>
$throughput
<details><summary>All figures as JSON</summary><pre>$document</pre></details>
<p>ordersys $version</p>
""")


def page(result: Result) -> str:
    """One HTML document."""
    found = result.document()
    counted = result.counted
    times = {"PlaceOrder": sorted((each.ended - each.begun) * 1000 for each in counted)}
    for queue, moments in result.heard.items():
        heard = [(moments[each.order_id] - each.begun) * 1000 for each in counted if each.order_id in moments]
        times[f"heard at {queue}"] = sorted(heard)
    shown = {
        "PlaceOrder": found["latency_ms"],
        **{f"heard at {name}": each for name, each in found["notified_ms"].items()},
    }
    plan = found["plan"]
    return _PAGE.substitute(
        rate=f"{found['orders_per_second']:.0f}",
        orders=found["orders"],
        how=(f"at {plan['rate']:g} orders/s" if plan["rate"] else f"{plan['concurrency']} callers")
        + f" over {plan['via']}",
        right="right" if found["ok"] else "wrong",
        counts=escape(", ".join(f"{name.replace('_', ' ')} {count}" for name, count in found["verdict"].items())),
        heads="".join(f"<th>{escape(name)}</th>" for name in found["latency_ms"]),
        rows="".join(
            f"<tr><td>{escape(name)}</td>{''.join(f'<td>{value:.1f}</td>' for value in values.values())}</tr>"
            for name, values in shown.items()
        ),
        latency=_latency(times),
        throughput=_throughput([each.ended for each in counted]),
        document=escape(json.dumps(found, indent=2)),
        version=__version__,
    )


def _latency(times: dict[str, list[float]]) -> str:
    """Time over percentile, the percentiles spread as in an HDR histogram: each nine has the same room."""
    nines = 4.0
    shares = [step / 200 * nines for step in range(201)]
    top = max((each[-1] for each in times.values() if each), default=1.0)
    lines = [
        [(share / nines, percentile(values, 100 * (1 - 10**-share)) / top) for share in shares]
        for values in times.values()
        if values
    ]
    marks = [(number / nines, f"{100 * (1 - 10**-number):g} %") for number in range(5)]
    return _plot(lines, marks, top, "ms", list(times))


def _throughput(moments: Sequence[float]) -> str:
    if not moments:
        return ""
    first = min(moments)
    seconds = Counter(int(each - first) for each in moments)
    last = max(seconds)
    whole = range(max(1, last))  # the last second is not a whole one
    top = max(seconds[each] for each in whole)
    line = [(each / max(1, len(whole) - 1), seconds[each] / top) for each in whole]
    step = max(1, math.ceil(len(whole) / 10))
    marks = [(each / max(1, len(whole) - 1), f"{each + 1} s") for each in whole[::step]]
    return _plot([line], marks, top, "/s", [])


def _plot(
    lines: Sequence[Sequence[tuple[float, float]]],
    marks: Sequence[tuple[float, str]],
    top: float,
    unit: str,
    names: Sequence[str],
) -> str:
    """Lines of points from 0 to 1 both ways; `top` is what 1 means upwards."""

    def x(value: float) -> float:
        return LEFT + value * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - value * (HEIGHT - BOTTOM - 14)

    drawn = [
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(part):.1f}" y2="{y(part):.1f}" stroke="#8885"/>'
        f'<text x="{LEFT - 6}" y="{y(part) + 4:.1f}" text-anchor="end">{top * part:.0f}{unit}</text>'
        for part in (0, 0.25, 0.5, 0.75, 1)
    ]
    drawn += [
        f'<text x="{x(at):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(mark)}</text>' for at, mark in marks
    ]
    for number, points in enumerate(lines):
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)
        colour = _COLOURS[number % len(_COLOURS)]
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if names:
            drawn.append(
                f'<text x="{LEFT + 10}" y="{24 + 16 * number}" style="fill:{colour}">{escape(names[number])}</text>'
            )
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(drawn)}</svg>'
