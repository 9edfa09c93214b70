"""Spans: whose child they are, when there is none, and what an error leaves on them."""

import subprocess
import sys

import pytest
from collector import Recorder
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, TraceIdRatioBased

from ordersys.core import errors, ids
from ordersys.core.watch.tracing import Tracing

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.mark.parametrize("parent", [SAMPLED, UNSAMPLED, "", "nonsense"])
def test_without_a_tracer_every_context_passes_on_as_it_came(parent: str) -> None:
    tracing = Tracing()
    with tracing.begin("work", parent=parent) as span:
        span.set({"a": 1})
        span.fail("broken")
    assert (span.traceparent, span.recorded, tracing.on) == (parent, False, False)
    assert tracing.begin("a batch", batch=[SAMPLED]).traceparent == ""
    assert tracing.under(tracing.begin("outer", parent=SAMPLED)).begin("inner").traceparent == SAMPLED


def test_a_span_is_the_child_of_the_parent_that_is_said(recorder: Recorder) -> None:
    tracing = recorder.tracing("shop")
    with tracing.begin("outer", parent=SAMPLED) as outer, tracing.begin("inner", parent=outer.traceparent) as inner:
        assert ids.is_traceparent(inner.traceparent)
    first, second = recorder.spans
    assert (first.service, first.name, first.trace, first.parent) == ("shop", "inner", TRACE, second.id)
    assert (second.name, second.trace, second.parent, second.kind) == ("outer", TRACE, SPAN, "INTERNAL")


def test_what_begins_within_a_span_is_not_by_that_the_child_of_it(recorder: Recorder) -> None:
    """Nothing is looked up: who works for a batch works for many traces at a time."""
    tracing = recorder.tracing()
    with tracing.begin("one"), tracing.begin("another"):
        pass
    assert [span.parent for span in recorder.spans] == ["", ""]
    assert len({span.trace for span in recorder.spans}) == 2


def test_what_has_no_parent_of_its_own_belongs_to_what_it_is_under(recorder: Recorder) -> None:
    tracing = recorder.tracing()
    with tracing.begin("command") as command:
        under = tracing.under(command)
        under.begin("call").end()
        under.begin("other", parent=SAMPLED).end()
    call, other, root = recorder.spans
    assert (call.parent, root.parent, other.trace) == (root.id, "", TRACE)


@pytest.mark.parametrize("sampler", [None, ParentBased(ALWAYS_ON), ParentBased(TraceIdRatioBased(1.0))])
def test_an_unsampled_parent_has_no_children_and_its_context_passes_on(
    recorder: Recorder, sampler: ParentBased | None
) -> None:
    span = recorder.tracing(sampler=sampler).begin("work", parent=UNSAMPLED)
    span.end()
    assert (span.traceparent, span.recorded, recorder.spans) == (UNSAMPLED, False, [])


def test_a_trace_that_is_not_wanted_is_not_wanted_further_down_either(recorder: Recorder) -> None:
    root = recorder.tracing(sampler=ALWAYS_OFF).begin("work")
    assert ids.is_traceparent(root.traceparent)
    recorder.tracing().begin("the next service", parent=root.traceparent).end()
    assert recorder.spans == []


def test_a_batch_is_a_trace_of_its_own_with_a_link_to_each_that_is_sampled(recorder: Recorder) -> None:
    tracing = recorder.tracing()
    members = [tracing.begin(name).traceparent for name in ("one", "two")]
    tracing.begin("batch", batch=[*members, UNSAMPLED, "nonsense", ""]).end()
    [batch] = recorder.spans
    assert batch.parent == ""
    assert batch.links == tuple(member.split("-")[2] for member in members)


def test_a_batch_of_which_nothing_is_sampled_is_not_sampled_nor_what_it_causes(recorder: Recorder) -> None:
    tracing = recorder.tracing()
    for members in ([UNSAMPLED, UNSAMPLED], ["nonsense"], []):
        batch = tracing.begin("batch", batch=members)
        assert not batch.recorded
        tracing.begin("the other side", parent=batch.traceparent).end()
    assert recorder.spans == []


def test_an_error_of_ours_leaves_its_code_and_any_other_its_class_alone(recorder: Recorder) -> None:
    tracing = recorder.tracing()
    with pytest.raises(errors.Unavailable), tracing.begin("ours"):
        raise errors.Unavailable("nobody answers")
    with pytest.raises(ValueError, match="secret"), tracing.begin("theirs"):
        raise ValueError("secret")
    ours, theirs = recorder.spans
    assert (ours.error, ours.attributes) == (True, {"error.type": "unavailable", "ordersys.error.code": "unavailable"})
    assert (theirs.error, theirs.attributes) == (True, {"error.type": "ValueError"})
    assert (ours.description, theirs.description) == ("nobody answers", "")


@pytest.mark.parametrize("command", [["client", "get-data"], ["serve-order"], ["up"]])
def test_without_the_sdk_otlp_is_wrong_usage_that_names_the_extra(command: list[str], tmp_path: object) -> None:
    program = (
        "import sys; sys.modules['opentelemetry.sdk.trace'] = None; "  # as if it were not installed
        f"sys.argv = ['ordersys', *{command!r}]; from ordersys.cli import main; main()"
    )
    environment = {"ORDERSYS_TRACES": "otlp", "ORDERSYS_HOME": str(tmp_path), "PATH": "", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "traces=otlp needs the OpenTelemetry SDK: pip install 'ordersys[otel]'" in done.stderr


def test_who_makes_no_traces_does_not_import_the_sdk() -> None:
    program = (
        "import sys; from ordersys import wiring; from ordersys.core.watch.traces import Traces; "
        "traces = Traces('off'); traces.open(); assert not traces.of('x').on; "
        "assert not [name for name in sys.modules if name.startswith('opentelemetry.sdk')]"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
