"""The settings by section; :mod:`novasvc.config.model` composes them."""
