"""What is seen from outside: metrics, readiness, the admin port, and traces."""
