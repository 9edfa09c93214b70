"""Tells somebody about every event: consumes a queue, drops duplicates, hands each event to a sink."""
