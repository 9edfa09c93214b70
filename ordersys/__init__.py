"""ordersys: a whole order backend, gRPC services and RabbitMQ events, behind one command."""

__version__ = "0.1.0"
