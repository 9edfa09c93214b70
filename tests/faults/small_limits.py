"""`ordersys ARGUMENT...`, its services taking at most N commands at a time: python small_limits.py N ARGUMENT..."""

import sys
from functools import partial

from ordersys import cli
from ordersys.order import service as order
from ordersys.product import service as product

limit = int(sys.argv.pop(1))
product.ProductService = partial(product.ProductService, max_waiting=limit)  # type: ignore[assignment,misc]
order.OrderService = partial(order.OrderService, max_waiting=limit)  # type: ignore[assignment,misc]
cli.main()
