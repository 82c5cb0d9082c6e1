"""Models on this machine: names, the catalogue, downloads and the cache."""

from sterna.hub.cache import Progress, cache_dir
from sterna.hub.resolve import ResolvedModel, default_model, is_model_name, resolve

__all__ = ["Progress", "ResolvedModel", "cache_dir", "default_model", "is_model_name", "resolve"]
