"""Property tests: no deadline for a single example, because the machine may be busy with something else."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("doorkey", deadline=None)
settings.load_profile("doorkey")
