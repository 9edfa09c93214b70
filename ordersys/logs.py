"""Log lines on stderr: readable on a terminal, one JSON object per line with ECS field names everywhere else."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

from ordersys import __version__


def set_up(level: str, log_format: Literal["auto", "console", "json"], service: str) -> None:
    """Configure the process's logging; `service` becomes `service.name`."""
    console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
    handler.setFormatter(formatter if console else _Json(service))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # What pika logs our adapter says in one line; pika says it in seven, one of them a traceback.
    logging.getLogger("pika").setLevel(logging.WARNING if level == "debug" else logging.CRITICAL)
    for chatty in ("alembic", "grpc", "asyncio"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))


class _Json(logging.Formatter):
    """Elastic Common Schema (https://www.elastic.co/guide/en/ecs/current/ecs-field-reference.html)."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "@timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "log.level": record.levelname.lower(),
            "message": record.getMessage(),
            "log.logger": record.name,
            "service.name": self._service,
            "service.version": __version__,
        }
        if record.exc_info:
            line["error.stack_trace"] = self.formatException(record.exc_info)
        return json.dumps(line)  # ASCII: what a stream cannot encode it would escape in a way that JSON does not know
