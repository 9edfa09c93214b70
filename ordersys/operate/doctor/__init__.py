"""`ordersys doctor`: looks at everything that has to be right, and changes nothing."""
