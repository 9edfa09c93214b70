"""The status machine: every change in every status."""

import pytest

from ordersys.core import errors
from ordersys.core.events import Change
from ordersys.core.records import Line, Order, Status
from ordersys.order import model

ALLOWED = {
    (Status.PLACED, Change.LINES): Status.PLACED,
    (Status.PLACED, Change.CANCELLED): Status.CANCELLED,
    (Status.PLACED, Change.SHIPPED): Status.SHIPPED,
    (Status.SHIPPED, Change.DELIVERED): Status.DELIVERED,
}


def order(status: Status = Status.PLACED, version: int = 3) -> Order:
    return Order(
        id="o",
        customer_id="c",
        status=status,
        lines=(Line("a", 2, 50),),
        currency="EUR",
        version=version,
        created_at=10,
        updated_at=20,
    )


def command(change: Change, expected_version: int = 0) -> model.Command:
    return model.Command(
        command_id="x",
        order_id="o",
        change=change,
        expected_version=expected_version,
        customer_id="c",
        lines=(Line("b", 1, 70),),
        currency="EUR",
    )


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("change", [each for each in Change if each is not Change.CREATED])
def test_only_the_allowed_changes_happen_and_each_grows_the_version_by_one(status: Status, change: Change) -> None:
    before = order(status)
    if (status, change) in ALLOWED:
        after = model.apply(before, command(change), now=30)
        assert after.status is ALLOWED[status, change]
        assert after.version == before.version + 1
        assert after.lines == (command(change).lines if change is Change.LINES else before.lines)
        assert (after.created_at, after.updated_at) == (10, 30)
    else:
        with pytest.raises(errors.InvalidTransition, match=f"is {status}"):
            model.apply(before, command(change), now=30)


def test_a_created_order_is_version_one() -> None:
    made = model.apply(None, command(Change.CREATED), now=30)
    assert (made.version, made.status, made.total, made.created_at, made.updated_at) == (1, Status.PLACED, 70, 30, 30)


def test_an_order_is_created_once() -> None:
    with pytest.raises(errors.VersionConflict):
        model.apply(order(), command(Change.CREATED), now=30)


@pytest.mark.parametrize("change", [each for each in Change if each is not Change.CREATED])
def test_nothing_happens_to_an_order_that_does_not_exist(change: Change) -> None:
    with pytest.raises(errors.OrderNotFound):
        model.apply(None, command(change), now=30)


def test_the_expected_version_must_be_the_one_there_is() -> None:
    assert model.apply(order(version=3), command(Change.SHIPPED, expected_version=3), now=30).version == 4
    for wrong in (1, 2, 4):
        with pytest.raises(errors.VersionConflict) as caught:
            model.apply(order(version=3), command(Change.SHIPPED, expected_version=wrong), now=30)
        assert caught.value.metadata == {"order_id": "o", "expected_version": str(wrong), "version": "3"}


def test_a_clock_that_goes_back_does_not_take_the_update_time_with_it() -> None:
    assert model.apply(order(), command(Change.SHIPPED), now=5).updated_at == 20


def test_advancing_leads_to_shipped_and_delivered_only() -> None:
    assert model.check_advance(Status.SHIPPED) is Change.SHIPPED
    assert model.check_advance(Status.DELIVERED) is Change.DELIVERED
    for status in (None, Status.PLACED, Status.CANCELLED):
        with pytest.raises(errors.InvalidArgument, match="to_status"):
            model.check_advance(status)
