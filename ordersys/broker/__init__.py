"""Carries events from the relay to the notifiers: one Protocol, an embedded broker on SQLite, and RabbitMQ."""
