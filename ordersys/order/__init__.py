"""The Order Service: the record of every order, and the outbox from which its events reach the broker."""
