"""Dashgate: a self-hosted gateway in front of Alibaba Cloud DashScope (see README.md)."""

__version__ = "0.1.0"
