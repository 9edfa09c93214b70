"""Who may call what, by the names in the caller's certificate (see `tls.identity`); where certificates are required."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ordersys.core import errors, tls

PRODUCT, ADMIN = "tls_product_identity", "tls_admin_identities"

ONLY = {
    "/ordersys.core.v1.OrderService/ProcessOrders": PRODUCT,  # whoever may ask this makes orders without any stock
    "/ordersys.core.v1.OrderService/SettleCommands": PRODUCT,  # and this keeps orders from ever being made
    "/ordersys.core.v1.OrderService/ListEvents": ADMIN,  # the outbox: every customer's past, and what was sent of it
    "/ordersys.core.v1.OrderService/GetFlow": ADMIN,  # queues and dead letters
    "/ordersys.core.v1.ProductService/AdjustStock": ADMIN,  # makes stock out of nothing
    "/ordersys.core.v1.ProductService/AuditStock": ADMIN,  # the books
    "/ordersys.core.v1.ProductService/ListStockMoves": ADMIN,
}
"""Method -> the setting that names who may call it; what is not here is for every certificate of the CA."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One method's callers, and the setting that says so."""

    names: frozenset[str]
    setting: str


def rules(product_identity: str, admin_identities: Sequence[str]) -> dict[str, Rule]:
    """Method -> its rule."""
    named = {PRODUCT: frozenset((product_identity,)), ADMIN: frozenset(admin_identities)}
    return {method: Rule(named[setting], setting) for method, setting in ONLY.items()}


def seen(auth_context: Mapping[str, Iterable[bytes]]) -> tuple[str, ...]:
    """The caller's names out of what gRPC found in its certificate; none when it showed none."""
    uris, dns_names, common = (
        [each.decode(errors="replace") for each in auth_context.get(key, ())]
        for key in ("peer_uri", "peer_dns", "x509_common_name")
    )
    return tls.identity(uris, dns_names, common)


def check(method: str, rule: Rule, auth_context: Mapping[str, Iterable[bytes]]) -> None:
    """Raise PermissionDenied when none of the caller's names is in the rule."""
    names = seen(auth_context)
    if rule.names.isdisjoint(names):
        who, variable = ", ".join(names) or "nobody", f"ORDERSYS_{rule.setting.upper()}"
        raise errors.PermissionDenied(
            f"{method.rpartition('/')[2]} is not for {who}: the service's {variable} is"
            f" {','.join(sorted(rule.names)) or 'empty'}",
            {"identity": who, "setting": variable},
        )
