"""ONE table error <-> gRPC status, both ways, with the rich details of google.rpc (https://google.aip.dev/193)."""

import itertools

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from ordersys.core import errors

DOMAIN = "ordersys"

STATUS: dict[str, grpc.StatusCode] = {
    "invalid_argument": grpc.StatusCode.INVALID_ARGUMENT,
    "product_not_found": grpc.StatusCode.NOT_FOUND,
    "order_not_found": grpc.StatusCode.NOT_FOUND,
    "insufficient_stock": grpc.StatusCode.FAILED_PRECONDITION,
    "order_refused": grpc.StatusCode.FAILED_PRECONDITION,
    "invalid_transition": grpc.StatusCode.FAILED_PRECONDITION,
    "version_conflict": grpc.StatusCode.ABORTED,
    "idempotency_key_reused": grpc.StatusCode.ALREADY_EXISTS,
    "unauthenticated": grpc.StatusCode.UNAUTHENTICATED,
    "permission_denied": grpc.StatusCode.PERMISSION_DENIED,
    "unavailable": grpc.StatusCode.UNAVAILABLE,
    "internal": grpc.StatusCode.INTERNAL,
}

_MOST_BYTES = 2_000

_UNKNOWN_OUTCOME = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)


def to_status(error: errors.OrdersysError) -> status_pb2.Status:
    """The google.rpc.Status that carries this error over the wire.

    It travels in the trailers, of which many clients take 8 KiB and not more
    (https://grpc.io/docs/guides/metadata/): of a long message and of many violations it holds the beginning.
    """
    info = error_details_pb2.ErrorInfo(reason=error.code.upper(), domain=DOMAIN, metadata=error.metadata)
    details: list[error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo] = [info]
    if isinstance(error, errors.InvalidArgument):
        violations = [
            error_details_pb2.BadRequest.FieldViolation(field=_cut(each.field), description=_cut(each.description))
            for each in error.violations
        ]
        sizes = itertools.accumulate(each.ByteSize() for each in violations)
        fit = [each for each, size in zip(violations, sizes, strict=True) if size <= _MOST_BYTES]
        details.append(error_details_pb2.BadRequest(field_violations=fit))
    if isinstance(error, errors.Unavailable):
        delay = Duration()
        delay.FromMicroseconds(int(error.retry_after * 1_000_000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        packed.append(AnyMessage())
        packed[-1].Pack(detail)
    number = STATUS.get(error.code, grpc.StatusCode.INTERNAL).value[0]
    message = error.told if isinstance(error, errors.Unavailable) else error.message
    return status_pb2.Status(code=number, message=_cut(message), details=packed)


def _cut(text: str) -> str:
    whole = text.encode(errors="replace")
    head = whole[: _MOST_BYTES // 2].decode(errors="ignore")
    return head if len(whole) <= _MOST_BYTES // 2 else f"{head} ..."


def abort_status(error: errors.OrdersysError) -> grpc.Status:
    """The same in the form that `context.abort_with_status` takes."""
    status: grpc.Status = rpc_status.to_status(to_status(error))
    return status


def from_call(call: grpc.RpcError, address: str) -> errors.OrdersysError:
    """The error that a failed call carried; `address` is whom we called, for the message when nobody answered."""
    code, message = _code_and_message(call)
    known = _from_details(call)
    if known is not None:
        return known
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return errors.InvalidArgument([], message)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and message.startswith("SERVER: Received message larger"):
        return errors.InvalidArgument([], f"the request is too large: {message}")  # no repetition can help
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return errors.Unauthenticated(message)
    if code is grpc.StatusCode.PERMISSION_DENIED:
        return errors.PermissionDenied(message)
    if code in _UNKNOWN_OUTCOME:
        # Who has run out of something is there; the other three come from the wire, or from a server that is going.
        kind = errors.Unavailable if code is grpc.StatusCode.RESOURCE_EXHAUSTED else errors.NoAnswer
        return kind(f"{address}: {code.name}: {message}", metadata={"address": address})
    return errors.Internal(f"{address}: {code.name}: {message}")


def _code_and_message(call: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    code = call.code() if hasattr(call, "code") else grpc.StatusCode.UNKNOWN
    message = call.details() if hasattr(call, "details") else str(call)
    return code, message or code.name


def _from_details(call: grpc.RpcError) -> errors.OrdersysError | None:
    info = error_details_pb2.ErrorInfo()
    request = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    try:
        status: status_pb2.Status | None = rpc_status.from_call(call)
        for detail in status.details if status else ():
            for target in (info, request, retry):
                if detail.Is(target.DESCRIPTOR):
                    detail.Unpack(target)
    except (ValueError, DecodeError):  # the trailer contradicts the status line or is garbage: trust neither
        return None
    if status is None or info.domain != DOMAIN:
        return None
    code = info.reason.lower()
    if code == errors.InvalidArgument.code:
        violations = [errors.FieldViolation(each.field, each.description) for each in request.field_violations]
        return errors.InvalidArgument(violations, status.message)
    if code == errors.Unavailable.code:
        return errors.Unavailable(status.message, retry.retry_delay.ToMicroseconds() / 1e6 or 0.5, info.metadata)
    return errors.refusal(code, status.message, info.metadata)
