"""Periodic tasks: methods that a node runs at an interval."""

from novasvc.periodic.declare import periodic_task
from novasvc.periodic.runner import TaskRunner
from novasvc.periodic.task import TaskStats

TaskFigures = TaskStats
"""The name of :class:`TaskStats` before 0.2."""

__all__ = ["TaskFigures", "TaskRunner", "TaskStats", "periodic_task"]
