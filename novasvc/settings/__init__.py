"""Frozen, typed settings, and where they come from."""

from novasvc.settings.load import Configuration, load
from novasvc.settings.masking import masked, masked_url
from novasvc.settings.model import ServiceSettings, Settings
from novasvc.settings.options import Option, given_options, options

__all__ = [
    "Configuration",
    "Option",
    "ServiceSettings",
    "Settings",
    "given_options",
    "load",
    "masked",
    "masked_url",
    "options",
]
