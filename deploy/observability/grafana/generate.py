"""Generate the Grafana dashboard from `panels.py`: `python deploy/observability/grafana/generate.py [FILE]`.

Places, ids and the long form that Grafana wants follow from the rows. The dashboard is committed; a test generates and
compares it. For Grafana 10 and newer.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from panels import ROWS, Panel

DASHBOARD = Path(__file__).resolve().parent / "provisioning" / "dashboards" / "ordersys.json"

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24  # the columns of Grafana's grid
CHOSEN = 'job=~"$job", instance=~"$instance"'

OPTIONS: dict[str, dict[str, Any]] = {
    "timeseries": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
    "stat": {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "area"},
    "bargauge": {"reduceOptions": {"calcs": ["lastNotNull"]}, "orientation": "horizontal", "displayMode": "basic"},
    "state-timeline": {"mergeValues": True, "showValue": "never"},
    "table": {"showHeader": True},
}


def target(number: int, kind: str, legend: str, query: str) -> dict[str, Any]:
    made = {
        "refId": chr(ord("A") + number),
        "datasource": DATASOURCE,
        "expr": query.replace("@", CHOSEN),
        "legendFormat": legend or "__auto",
    }
    return {**made, "format": "table", "instant": True} if kind == "table" else made


def field(panel: Panel) -> dict[str, Any]:
    """How a panel shows values."""
    steps = [{"color": panel.below, "value": None}]
    steps += [{"color": colour, "value": value} for value, colour in (panel.thresholds or {}).items()]
    made: dict[str, Any] = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.kind == "timeseries":
        shown = "dashed" if panel.thresholds else "off"
        made |= {"min": 0, "custom": {"fillOpacity": 10, "thresholdsStyle": {"mode": shown}}}
    else:
        made["color"] = {"mode": "thresholds"}
    if panel.mappings:
        options = {str(value): {"text": text, "color": colour} for value, (text, colour) in panel.mappings.items()}
        made["mappings"] = [{"type": "value", "options": options}]
    return made


def panels() -> Iterator[dict[str, Any]]:
    """The rows and their panels, side by side until a line is full."""
    top, number = 0, 0
    for title, row in ROWS.items():
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": False,
            "panels": [],
            "gridPos": {"x": 0, "y": top, "w": WIDTH, "h": 1},
        }
        top, left, height = top + 1, 0, 0
        for panel in row:
            if left + panel.width > WIDTH:
                top, left, height = top + height, 0, 0
            number += 1
            made = {
                "id": number,
                "type": panel.kind,
                "title": panel.title,
                "description": panel.says,
                "datasource": DATASOURCE,
                "gridPos": {"x": left, "y": top, "w": panel.width, "h": panel.height},
                "targets": [target(at, panel.kind, *each) for at, each in enumerate(panel.queries.items())],
                "fieldConfig": {"defaults": field(panel), "overrides": []},
                "options": OPTIONS[panel.kind],
            }
            if panel.kind == "table":
                hidden = dict.fromkeys(("Time", "Value", "__name__"), True)
                made["transformations"] = [{"id": "organize", "options": {"excludeByName": hidden}}]
            yield made
            left, height = left + panel.width, max(height, panel.height)
        top += height


def variable(name: str, query: str) -> dict[str, Any]:
    """A choice of label values; all of them at first."""
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def dashboard() -> dict[str, Any]:
    datasource = {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "current": {"text": "Prometheus", "value": "ordersys-prometheus"},
    }
    return {
        "uid": "ordersys",
        "title": "ordersys",
        "description": "The order backend: the shop, its batches, events, queues, gateway and processes.",
        "tags": ["ordersys"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {
            "list": [
                datasource,
                variable("job", "label_values(ordersys_build_info, job)"),
                variable("instance", 'label_values(ordersys_build_info{job=~"$job"}, instance)'),
            ]
        },
        "panels": list(panels()),
    }


if __name__ == "__main__":
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else DASHBOARD
    file.write_text(json.dumps(dashboard(), indent=2) + "\n", encoding="utf-8")
