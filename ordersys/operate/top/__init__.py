"""`ordersys top`: how the system does at this moment."""
