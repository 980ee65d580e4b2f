"""A database as a project of Megatron-LM's Retro; needs the extras `build` and `megatron`."""

from retro_db.export.project import MegatronProject, MegatronSettings

__all__ = ["MegatronProject", "MegatronSettings"]
