"""Frozen, typed settings, and where they come from."""

from novasvc.config.command_line import Option, option_table
from novasvc.config.load import Configuration, load
from novasvc.config.masking import masked, masked_url
from novasvc.config.model import Settings
from novasvc.config.sections.services import ServiceSettings

__all__ = [
    "Configuration",
    "Option",
    "ServiceSettings",
    "Settings",
    "load",
    "masked",
    "masked_url",
    "option_table",
]
