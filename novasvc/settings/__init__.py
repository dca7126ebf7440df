"""Frozen, typed settings, and where they come from."""

from novasvc.settings.load import Configuration, load
from novasvc.settings.masking import masked, masked_url
from novasvc.settings.model import ServiceSettings, Settings
from novasvc.settings.options import Option, option_table

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
