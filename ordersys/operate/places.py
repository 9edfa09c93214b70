"""Where the roles of this machine can be found, as the settings say."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ordersys.settings import Settings


def metrics(settings: "Settings") -> list[str]:
    """The URLs of the metrics of every role, as far as it runs."""
    from ordersys.settings import dialled

    binds = [settings.product_admin_bind, settings.order_admin_bind, settings.notify_admin_bind]
    scheme = "https" if settings.api_tls_cert_file else "http"
    return [
        *(f"http://{dialled(bind)}/metrics" for bind in binds if bind != "off" and not bind.endswith(":0")),
        f"{scheme}://{dialled(settings.api_bind)}/metrics",
    ]
