"""The registry that all roles of a process share."""

import shutil
import subprocess

import pytest
from prometheus_client.openmetrics import parser as openmetrics

import ordersys
from ordersys.core.watch.metrics import Registry


def test_two_parts_of_one_kind_share_a_metric_and_labels_tell_them_apart() -> None:
    registry = Registry()
    for queue, count in (("a", 1), ("b", 2)):
        registry.counter("ordersys_things", "Things", ["queue"]).labels(queue).inc(count)
    assert registry.get_sample_value("ordersys_things_total", {"queue": "a"}) == 1
    assert registry.get_sample_value("ordersys_things_total", {"queue": "b"}) == 2


@pytest.mark.parametrize("kind", ["gauge", "histogram"])
def test_one_name_is_one_metric(kind: str) -> None:
    registry = Registry()
    registry.counter("ordersys_things", "Things", ["queue"])
    with pytest.raises(ValueError, match="ordersys_things exists with another type or other labels"):
        getattr(registry, kind)("ordersys_things", "Things", ["queue"])
    with pytest.raises(ValueError, match="other labels"):
        registry.counter("ordersys_things", "Things", ["topic"])


def test_each_role_names_its_build() -> None:
    registry = Registry()
    registry.show_build("api")
    registry.show_build("order-service")
    builds = [each.labels for family in registry.collect() for each in family.samples if "build" in each.name]
    assert [each["service"] for each in builds] == ["api", "order-service"]
    assert {each["version"] for each in builds} == {ordersys.__version__}


def test_a_dependency_is_up_or_down_or_absent_while_nobody_can_tell() -> None:
    registry = Registry()
    show = registry.dependencies("api")

    def shown(dependency: str) -> float | None:
        return registry.get_sample_value("ordersys_dependency_up", {"service": "api", "dependency": dependency})

    show({"database": True, "schema": None})
    assert (shown("database"), shown("schema")) == (1, None)
    show({"database": False, "schema": True})
    assert (shown("database"), shown("schema")) == (0, 1)
    show({"database": True, "schema": None})
    assert (shown("database"), shown("schema")) == (1, None)


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"])
def test_when_a_series_was_made_is_not_told(accept: str) -> None:
    registry = Registry()
    registry.counter("ordersys_things", "Things").inc()
    registry.histogram("ordersys_seconds", "Seconds").observe(1)
    text = registry.exposition(accept)[0].decode()
    assert "ordersys_things_total 1.0" in text
    assert "_created" not in text


def test_both_formats_are_spoken() -> None:
    registry = Registry()
    registry.show_build("api")
    assert registry.exposition("")[1].startswith("text/plain; version=0.0.4")
    text, content_type = registry.exposition("application/openmetrics-text;version=1.0.0")
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    names = {each.name for each in openmetrics.text_string_to_metric_families(text.decode())}
    assert "ordersys_build" in names
    assert all(name.startswith(("ordersys_", "process_")) for name in names)


def test_promtool_has_nothing_to_say_of_all_that_the_roles_count() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool here")
    from ordersys.api.metrics import Metrics
    from ordersys.core.watch.measured import CallMetrics
    from ordersys.notify.metrics import NotifierMetrics
    from ordersys.order.metrics import OrderMetrics
    from ordersys.order.relay import RelayMetrics
    from ordersys.product.metrics import ProductMetrics

    registry = Registry()
    Metrics(registry)
    for service in ("product-service", "order-service"):
        CallMetrics(registry, service)
        registry.show_build(service)
    for queue in ("notify.fanout", "notify.topic"):
        NotifierMetrics(registry, queue)
    OrderMetrics(registry)
    RelayMetrics(registry)
    ProductMetrics(registry)
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=registry.exposition("")[0], capture_output=True, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
