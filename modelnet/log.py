"""Logging: structlog to stderr, an event name and fields; lines for people on a terminal, JSON otherwise."""

from __future__ import annotations

import logging
import sys

import structlog

from .settings import Settings

__all__ = ["setup_logging"]


def setup_logging(settings: Settings) -> None:
    """Configure structlog and the standard library's logging for a process of the network."""
    level = getattr(logging, settings.log_level.upper(), logging.INFO)
    console = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    renderer = structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=max(level, logging.WARNING), stream=sys.stderr, format="%(name)s %(message)s")
