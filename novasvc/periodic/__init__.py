"""Periodic tasks: methods that a node runs again and again, each at its own pace."""

from novasvc.periodic.declare import periodic_task
from novasvc.periodic.runner import TaskRunner
from novasvc.periodic.task import TaskFigures

__all__ = ["TaskFigures", "TaskRunner", "periodic_task"]
