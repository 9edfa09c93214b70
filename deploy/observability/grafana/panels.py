"""What the dashboard shows: rows of panels, and the PromQL of each. `generate.py` makes Grafana's form of it."""

from dataclasses import dataclass

Thresholds = dict[float, str]
"""From this value on this colour; what is below the first one is green, or what the panel says."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    title: str
    says: str
    queries: dict[str, str]  # legend -> PromQL; `@` stands for the chosen jobs and instances
    unit: str
    kind: str = "timeseries"
    width: int = 8
    height: int = 7
    thresholds: Thresholds | None = None
    below: str = "green"
    mappings: dict[int, tuple[str, str]] | None = None  # value -> text and colour


def stat(title: str, says: str, query: str, unit: str, thresholds: Thresholds | None = None) -> Panel:
    """One number of the present."""
    return Panel(
        title=title, says=says, queries={"": query}, unit=unit, kind="stat", width=4, height=4, thresholds=thresholds
    )


def rate(name: str, labels: str, more: str = "") -> str:
    """How often per second, by labels; `more` are further matchers."""
    return f"sum by ({labels}) (rate({name}{{{more}@}}[$__rate_interval]))"


def quantile(share: float, name: str, labels: str, more: str = "") -> str:
    return f"histogram_quantile({share}, {rate(f'{name}_bucket', f'{labels}, le', more)})"


def average(name: str, label: str) -> str:
    """The mean of what a histogram has seen."""
    return f"{rate(f'{name}_sum', label)} / {rate(f'{name}_count', label)}"


PLACE = 'method="PlaceOrder", '

ROWS: dict[str, list[Panel]] = {
    "The shop now": [
        stat(
            "Orders placed",
            "New orders per second.",
            'sum(rate(ordersys_order_changes_total{change="created", @}[$__rate_interval]))',
            "ops",
        ),
        stat(
            "Failing calls",
            "The service with the largest share of calls that failed through no fault of the caller, in 5 minutes.",
            "max(service:ordersys_errors:ratio_rate5m)",
            "percentunit",
            {0.001: "orange", 0.0144: "red"},
        ),
        stat(
            "PlaceOrder p99",
            "99 of 100 orders are answered within this time.",
            'max(service_method:ordersys_grpc_server_call_duration_seconds:p99_5m{method="PlaceOrder"})',
            "s",
            {0.5: "orange", 1: "red"},
        ),
        stat(
            "Oldest event in the outbox",
            "How long the oldest event has waited for the broker's confirm.",
            "max(ordersys_outbox_oldest_age_seconds{@})",
            "s",
            {10: "orange", 60: "red"},
        ),
        stat(
            "Dead letters",
            "In all standard queues; nobody tries them again by itself.",
            'sum(max by (queue) (ordersys_queue_messages{state="dead", @}))',
            "short",
            {1: "red"},
        ),
        stat(
            "Alerts",
            "Alerts of ordersys that fire now; docs/runbooks.md says what to do.",
            'count(ALERTS{alertname=~"Ordersys.+", alertstate="firing"}) or vector(0)',
            "short",
            {1: "red"},
        ),
        Panel(
            title="Orders by change",
            says="What becomes of orders, per second.",
            queries={"{{change}}": rate("ordersys_order_changes_total", "change")},
            unit="ops",
        ),
        Panel(
            title="PlaceOrder latency",
            says="How long the Product Service takes to answer an order: half of them, 95 and 99 of 100.",
            queries={
                f"p{share * 100:g}": quantile(share, "ordersys_grpc_server_call_duration_seconds", "method", PLACE)
                for share in (0.5, 0.95, 0.99)
            },
            unit="s",
            thresholds={0.5: "orange", 1: "red"},
        ),
        Panel(
            title="Failing calls by service",
            says="Share of calls that failed through no fault of the caller. 0.1 % is what the alerts' budget allows.",
            queries={"{{service}}": "service:ordersys_errors:ratio_rate5m"},
            unit="percentunit",
            thresholds={0.001: "orange", 0.0144: "red"},
        ),
        Panel(
            title="Calls by method",
            says="gRPC calls per second.",
            queries={"{{service}} {{method}}": rate("ordersys_grpc_server_calls_total", "service, method")},
            unit="reqps",
        ),
        Panel(
            title="Answers that are not OK",
            says="gRPC statuses per second: refusals of a rule (FAILED_PRECONDITION, NOT_FOUND...) and failures.",
            queries={"{{service}} {{code}}": rate("ordersys_grpc_server_calls_total", "service, code", 'code!="OK", ')},
            unit="reqps",
        ),
        Panel(
            title="Stock refusals",
            says="Orders refused for want of stock or of the product, per second.",
            queries={"{{code}}": rate("ordersys_stock_refusals_total", "code")},
            unit="ops",
        ),
        Panel(
            title="Latency by method, p99",
            says="99 of 100 gRPC calls are answered within this time; streams are not among them.",
            queries={
                "{{service}} {{method}}": quantile(
                    0.99, "ordersys_grpc_server_call_duration_seconds", "service, method"
                )
            },
            unit="s",
            thresholds={0.5: "orange", 1: "red"},
        ),
        Panel(
            title="Unsettled commands",
            says="Commands that hold stock and have had no answer; recovery asks what became of them.",
            queries={
                "commands": "max(ordersys_unsettled_commands{@})",
                "age of the oldest, in seconds": "max(ordersys_unsettled_oldest_age_seconds{@})",
            },
            unit="short",
            thresholds={60: "red"},
        ),
        Panel(
            title="Settlements and stock drift",
            says="How commands were settled, per second; and by how many units stock differs from its ledger: 0.",
            queries={
                "{{fate}} by {{by}}": rate("ordersys_settlements_total", "fate, by"),
                "drift, in units": "max(ordersys_stock_drift_units{@})",
            },
            unit="short",
        ),
    ],
    "Batches": [
        Panel(
            title="Batch size",
            says="Entries per batch on average: batches grow with the load, and that is what keeps up with it.",
            queries={"{{batcher}}": average("ordersys_batch_size", "batcher")},
            unit="short",
            width=6,
        ),
        Panel(
            title="Wait for a batch, p99",
            says="How long an entry waited for its batch to begin.",
            queries={"{{batcher}}": quantile(0.99, "ordersys_batch_wait_seconds", "batcher")},
            unit="s",
            width=6,
            thresholds={0.5: "orange", 1: "red"},
        ),
        Panel(
            title="Duration of a batch, p99",
            says="How long a batch was at work: its transaction, or its call to the Order Service.",
            queries={"{{batcher}}": quantile(0.99, "ordersys_batch_duration_seconds", "batcher")},
            unit="s",
            width=6,
            thresholds={0.5: "orange", 1: "red"},
        ),
        Panel(
            title="Waiting",
            says="Entries that wait for a batch now. At 10000 new calls are refused as overloaded.",
            queries={"{{batcher}} {{instance}}": "ordersys_batch_waiting{@}"},
            unit="short",
            width=6,
            thresholds={1000: "orange", 5000: "red"},
        ),
    ],
    "Outbox and relay": [
        Panel(
            title="Events in the outbox",
            says="Events that the broker has not confirmed yet.",
            queries={"events": "max(ordersys_outbox_depth{@})"},
            unit="short",
            width=6,
            thresholds={1000: "orange"},
        ),
        Panel(
            title="Age of the oldest event",
            says="How long the oldest event in the outbox has waited.",
            queries={"age": "max(ordersys_outbox_oldest_age_seconds{@})"},
            unit="s",
            width=6,
            thresholds={10: "orange", 60: "red"},
        ),
        Panel(
            title="Published messages and events",
            says="Messages by what the broker said to them, events taken out of the outbox, and events sent again.",
            queries={
                "messages {{outcome}}": rate("ordersys_relay_messages_total", "outcome"),
                "events sent": "sum(rate(ordersys_relay_events_total{@}[$__rate_interval]))",
                "events sent again": "sum(rate(ordersys_relay_retries_total{@}[$__rate_interval]))",
            },
            unit="ops",
            width=6,
        ),
        Panel(
            title="Duration of a round",
            says="How long the relay takes to publish up to 500 events and to mark them sent.",
            queries={
                f"p{share * 100:g}": quantile(share, "ordersys_relay_round_duration_seconds", "job")
                for share in (0.5, 0.99)
            },
            unit="s",
            width=6,
        ),
    ],
    "Queues and consumers": [
        Panel(
            title="Messages in queues",
            says="Per standard queue: ready for a notifier, resting before another try, dead.",
            queries={"{{queue}} {{state}}": "max by (queue, state) (ordersys_queue_messages{@})"},
            unit="short",
        ),
        Panel(
            title="Notifications by outcome",
            says="Per second: handled, dropped as a duplicate, to be tried again, given to the dead letters.",
            queries={"{{queue}} {{outcome}}": rate("ordersys_notifications_total", "queue, outcome")},
            unit="ops",
        ),
        Panel(
            title="Consumer lag",
            says="From the event to the end of its notification: half of them, and 95 of 100.",
            queries={
                f"{{{{queue}}}} p{share * 100:g}": quantile(share, "ordersys_notification_lag_seconds", "queue")
                for share in (0.5, 0.95)
            },
            unit="s",
            thresholds={5: "orange", 30: "red"},
        ),
        Panel(
            title="Failing notifications",
            says="Share that has to be tried again or became a dead letter.",
            queries={
                "{{queue}}": rate("ordersys_notifications_total", "queue", 'outcome=~"retried|dead", ')
                + " / "
                + rate("ordersys_notifications_total", "queue")
            },
            unit="percentunit",
            thresholds={0.01: "orange", 0.1: "red"},
        ),
        Panel(
            title="Duration of the effect, p99",
            says="How long the sink takes for one notification.",
            queries={"{{queue}}": quantile(0.99, "ordersys_notification_duration_seconds", "queue")},
            unit="s",
        ),
        Panel(
            title="Messages taken at once",
            says="Average batch of a notifier; each batch is one transaction of its inbox.",
            queries={"{{queue}}": average("ordersys_notification_batch_size", "queue")},
            unit="short",
        ),
    ],
    "Gateway": [
        Panel(
            title="Answers by status",
            says="HTTP answers per second.",
            queries={"{{status}}": rate("ordersys_http_requests_total", "status")},
            unit="reqps",
        ),
        Panel(
            title="Latency by route, p99",
            says="99 of 100 requests are answered within this time; event streams are not among them.",
            queries={"{{method}} {{route}}": quantile(0.99, "ordersys_http_request_duration_seconds", "method, route")},
            unit="s",
            thresholds={0.5: "orange", 1: "red"},
        ),
        Panel(
            title="Calls to the services",
            says="By what came of them, per second.",
            queries={"{{service}} {{code}}": rate("ordersys_upstream_calls_total", "service, code")},
            unit="reqps",
        ),
        Panel(
            title="Latency of the services, p99",
            says="As the gateway sees it, retries included.",
            queries={"{{service}}": quantile(0.99, "ordersys_upstream_call_duration_seconds", "service")},
            unit="s",
            thresholds={0.5: "orange", 1: "red"},
        ),
        Panel(
            title="Breakers",
            says="Open: the gateway has got no answers from this service and calls it no more for a while.",
            queries={"{{service}} {{instance}}": "ordersys_upstream_breaker_state{@}"},
            unit="none",
            kind="state-timeline",
            mappings={0: ("closed", "green"), 1: ("half-open", "orange"), 2: ("open", "red")},
        ),
        Panel(
            title="Event streams, and what is refused",
            says="Streams and requests that are open now; per second: streams dropped because their reader was slow,"
            " requests refused as too many, answers from the last known data.",
            queries={
                "streams": "sum(ordersys_http_streams{@})",
                "requests in flight": "sum(ordersys_http_requests_in_flight{@})",
                "streams dropped": "sum(rate(ordersys_http_streams_dropped_total{@}[$__rate_interval]))",
                "refused as too many": "sum(rate(ordersys_rate_limited_total{@}[$__rate_interval]))",
                "stale answers": "sum(rate(ordersys_stale_answers_total{@}[$__rate_interval])) or vector(0)",
            },
            unit="short",
        ),
    ],
    "Resources and build": [
        Panel(
            title="CPU",
            says="Cores that each process uses.",
            queries={"{{job}} {{instance}}": 'rate(process_cpu_seconds_total{job=~"ordersys.*", @}[$__rate_interval])'},
            unit="short",
        ),
        Panel(
            title="Memory",
            says="Resident memory of each process.",
            queries={"{{job}} {{instance}}": 'process_resident_memory_bytes{job=~"ordersys.*", @}'},
            unit="bytes",
        ),
        Panel(
            title="Open files",
            says="Share of the file descriptors that each process may have; connections are among them.",
            queries={
                "{{job}} {{instance}}": 'process_open_fds{job=~"ordersys.*", @} / process_max_fds{job=~"ordersys.*", @}'
            },
            unit="percentunit",
            thresholds={0.7: "orange", 0.9: "red"},
        ),
        Panel(
            title="gRPC calls in flight and streams",
            says="Calls that wait for their answer, and event streams that are open.",
            queries={
                "{{service}} calls": "sum by (service) (ordersys_grpc_server_calls_in_flight{@})",
                "{{service}} streams": "sum by (service) (ordersys_grpc_server_streams{@})",
            },
            unit="short",
        ),
        Panel(
            title="Dependencies",
            says="What each role needs, and whether it answers.",
            queries={"{{service}} {{dependency}} {{instance}}": "ordersys_dependency_up{@}"},
            unit="none",
            kind="state-timeline",
            mappings={0: ("down", "red"), 1: ("up", "green")},
        ),
        Panel(
            title="Builds",
            says="Which version runs where.",
            queries={"": "ordersys_build_info{@}"},
            unit="none",
            kind="table",
        ),
    ],
    "Certificates": [
        Panel(
            title="Certificates expire in",
            says="Per file of a process: how long it is good for. Replaced files are read again without a restart.",
            queries={"{{instance}} {{file}}": "ordersys_certificate_expiry_timestamp_seconds{@} - time()"},
            unit="s",
            kind="bargauge",
            width=24,
            thresholds={3 * 86_400: "orange", 21 * 86_400: "green"},
            below="red",
        ),
    ],
}
